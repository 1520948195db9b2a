// The tray in the header. htmx refreshes it; pages that do not load htmx get it from here.
(() => {
  const TRAY = "#pcrud-tray";
  const { htmx: htmxUrl } = document.currentScript.dataset;
  const tray = () => document.querySelector(TRAY);
  const details = () => tray().querySelector("details");
  const isTray = (event) => event.detail.requestConfig?.elt.matches(TRAY) ?? false;
  const endedOf = (text) => text.match(/id="pcrud-tray-ended-\d+"/g) ?? [];
  let wasOpen = false;

  // Which page it leads back to, and whether it is about the page itself.
  const complete = () => {
    const next = tray().querySelector("[data-pcrud-tray-next]");
    if (next) {
      next.value = location.pathname + location.search;
    }
  };

  const loadHtmx = () => {
    if (!tray().hasAttribute("hx-get") || window.htmx) {
      return;
    }
    // As on our own pages: by default htmx adds an inline style, which default-src 'self' forbids.
    if (!document.querySelector("meta[name=htmx-config]")) {
      const meta = document.createElement("meta");
      meta.name = "htmx-config";
      meta.content = '{"includeIndicatorStyles": false, "allowEval": false}';
      document.head.append(meta);
    }
    const script = document.createElement("script");
    script.src = htmxUrl;
    document.head.append(script);
  };

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (isTray(event) && document.hidden) {
      event.preventDefault();
    }
  });

  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target.matches(TRAY)) {
      event.detail.headers["X-Pcrud-State"] = event.target.dataset.pcrudTray;
    }
  });

  // After the end of the session the page stays, as something may have been typed there.
  document.addEventListener("htmx:beforeOnLoad", (event) => {
    if (isTray(event) && event.detail.xhr.getResponseHeader("HX-Redirect")) {
      event.preventDefault();
    }
  });

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (!isTray(event)) {
      return;
    }
    const { serverResponse } = event.detail;
    if (!serverResponse.includes('id="pcrud-tray"')) {
      event.detail.shouldSwap = false;
      return;
    }
    wasOpen = details().open;
    const before = new Set(endedOf(tray().outerHTML));
    if (endedOf(serverResponse).some((ended) => !before.has(ended))) {
      const news = document.querySelector("[data-pcrud-tray-news]");
      news.textContent = "";
      setTimeout(() => {
        news.textContent = news.dataset.pcrudTrayNews;
      }, 100);
    }
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (isTray(event)) {
      details().open = wasOpen;
      complete();
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && details().open) {
      details().open = false;
      details().querySelector("summary").focus();
    }
  });

  document.addEventListener("click", (event) => {
    if (!event.target.closest(TRAY)) {
      details().open = false;
    }
  });

  complete();
  // htmx waits for an event that is over if it is loaded before the page is complete.
  window.addEventListener("load", loadHtmx);
})();
