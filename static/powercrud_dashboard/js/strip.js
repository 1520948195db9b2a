// The strip of running tasks above a changelist, and the lock marks of the rows below it.
(() => {
  const STRIP = "#pcrud-strip";
  const marks = () => [...document.querySelectorAll("[data-pcrud-lock]")];

  // A page that nobody looks at does not ask the server for news.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.matches(STRIP) && document.hidden) {
      event.preventDefault();
    }
  });

  // The server is told which rows are shown, and where its buttons lead back to.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target.matches(STRIP)) {
      event.detail.parameters.key = marks().map((mark) => mark.dataset.pcrudLock);
      event.detail.parameters.next = event.target.dataset.pcrudNext;
    }
  });

  // A refresh that was led elsewhere, such as to the login page, must not end up inside of this page.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const address = event.detail.xhr.responseURL;
    if (address && new URL(address).pathname !== event.detail.pathInfo.requestPath.split("?")[0]) {
      event.detail.shouldSwap = false;
      window.location.reload();
    }
  });

  document.addEventListener("htmx:afterSwap", () => {
    const { pcrudLocked } = document.querySelector(STRIP).dataset;
    if (pcrudLocked !== undefined) {
      const locked = new Set(pcrudLocked.split(" "));
      marks().forEach((mark) => {
        mark.hidden = !locked.has(mark.dataset.pcrudLock);
      });
    }
  });
})();
