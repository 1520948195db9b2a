// The strip of unfinished tasks above a changelist, and the lock icons of its rows. refresh.js refreshes the strip.
(() => {
  const STRIP = "#pcrud-strip";
  // As many rows as the server looks at (MAX_STRIP_KEYS). Further marks stay as they are.
  const MAX_ROWS = 500;
  const marks = () => [...document.querySelectorAll("[data-pcrud-lock]")].slice(0, MAX_ROWS);

  // Send the displayed rows, and the URL to redirect to after an action.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target.matches(STRIP)) {
      event.detail.parameters.key = marks().map((mark) => mark.dataset.pcrudLock);
      event.detail.parameters.next = event.target.dataset.pcrudNext;
      event.detail.parameters.watched = event.target.dataset.pcrudWatched;
    }
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (!event.detail.requestConfig?.elt.matches(STRIP)) {
      return;
    }
    const { pcrudLocked } = document.querySelector(STRIP).dataset;
    if (pcrudLocked !== undefined) {
      const locked = new Set(JSON.parse(pcrudLocked));
      marks().forEach((mark) => {
        mark.hidden = !locked.has(mark.dataset.pcrudLock);
      });
    }
  });
})();
