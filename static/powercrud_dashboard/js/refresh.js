// The parts of the pages that fetch themselves again.
(() => {
  const PART = "[data-pcrud-refresh]";

  // What needs this script is hidden without it.
  const reveal = (root) => {
    root.querySelectorAll("[data-pcrud-needs-script]").forEach((element) => {
      element.hidden = false;
    });
  };

  // A refresh that was led elsewhere, such as to the login page, must not end up inside of this page.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const address = event.detail.xhr.responseURL;
    if (address && new URL(address).pathname !== window.location.pathname) {
      event.detail.shouldSwap = false;
      window.location.reload();
    }
  });

  // A page that nobody looks at does not ask the server for news.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.matches(PART) && document.hidden) {
      event.preventDefault();
    }
  });

  // The server answers with nothing if this is what there is still to see.
  document.addEventListener("htmx:configRequest", (event) => {
    const { pcrudState, pcrudNewest } = event.target.dataset;
    if (pcrudState) {
      event.detail.headers["X-Pcrud-State"] = pcrudState;
    }
    if (pcrudNewest) {
      event.detail.headers["X-Pcrud-Newest"] = pcrudNewest;
    }
  });

  document.addEventListener("htmx:afterSwap", () => reveal(document));

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pcrud-submit-on-change]")) {
      event.target.form.requestSubmit();
    }
  });

  reveal(document);
})();
