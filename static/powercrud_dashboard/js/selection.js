// Ticked rows of the task list: tick a whole page, and keep the ticks through refreshes.
(() => {
  const LIST = "#pcrud-tasks";
  let ticked = new Set();

  const boxes = () => document.querySelectorAll(`${LIST} input[type="checkbox"]`);
  const rowBoxes = () => document.querySelectorAll(`${LIST} input[name="selected"]`);
  const areTicked = () => document.querySelector(`${LIST} input[type="checkbox"]:checked`) !== null;

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pcrud-select-page]")) {
      rowBoxes().forEach((box) => {
        box.checked = event.target.checked;
      });
    }
  });

  // As long as rows are ticked, new ones are announced and not put in between.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target.matches(LIST) && areTicked()) {
      event.detail.headers["X-Pcrud-Hold"] = "1";
    }
  });

  document.addEventListener("htmx:beforeSwap", () => {
    ticked = new Set([...boxes()].filter((box) => box.checked).map((box) => box.id));
  });

  document.addEventListener("htmx:afterSwap", () => {
    boxes().forEach((box) => {
      box.checked = ticked.has(box.id);
    });
  });
})();
