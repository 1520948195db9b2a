// Keyboard shortcuts of the task list. They are inactive in form fields.
(() => {
  const rows = () => [...document.querySelectorAll("#result_list [data-pcrud-row]")];

  const currentRow = () => document.activeElement.closest("#result_list tbody tr");

  const move = (step) => {
    const links = rows();
    const row = currentRow();
    const index = links.findIndex((link) => link.closest("tr") === row);
    const next = index < 0 ? (step > 0 ? 0 : links.length - 1) : index + step;
    links[Math.min(Math.max(next, 0), links.length - 1)]?.focus();
  };

  const showKeys = () => {
    const dialog = document.getElementById("pcrud-keys");
    if (dialog && !dialog.open) {
      dialog.showModal();
    }
  };

  const keys = {
    "/": () => document.querySelector(".pcrud-filters input[type=search]")?.focus(),
    r: () => {
      const part = document.querySelector("[data-pcrud-refresh]");
      if (part) {
        delete part.dataset.pcrudState;
        const request = htmx.ajax("GET", part.getAttribute("hx-get"), { source: part, target: part, swap: "pcrud-morph" });
        // refresh.js shows that the request has failed.
        request.catch(() => {});
      }
    },
    j: () => move(1),
    k: () => move(-1),
    x: () => currentRow()?.querySelector("input[name=selected]")?.click(),
    "?": showKeys,
  };

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable], dialog");
    const action = keys[event.key];
    if (!action || isTyping || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    event.preventDefault();
    action();
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-pcrud-show-keys]")) {
      showKeys();
    }
  });
})();
