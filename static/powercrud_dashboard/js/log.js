// The log of a running task: new lines are added at its end, and kept in view if the end was in view.
(() => {
  const TAIL = "[data-pcrud-tail]";
  const box = () => document.querySelector("[data-pcrud-log]");
  const isTail = (event) => event.detail.requestConfig?.elt.matches(TAIL) ?? false;
  let follows = false;

  const showEnd = () => {
    box().scrollTop = box().scrollHeight;
  };

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (isTail(event) && document.hidden) {
      event.preventDefault();
    }
  });

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (isTail(event)) {
      const { scrollTop, scrollHeight, clientHeight } = box();
      follows = scrollTop + clientHeight >= scrollHeight - 8;
    }
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (isTail(event) && follows) {
      showEnd();
    }
  });

  if (box()?.matches("[data-pcrud-log-follows]") && !location.hash.startsWith("#line-")) {
    showEnd();
  }
})();
