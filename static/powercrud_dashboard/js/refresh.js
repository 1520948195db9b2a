// The refreshing part of a page: [data-pcrud-refresh]. Other requests of htmx on the same page are left alone.
(() => {
  const PART = "[data-pcrud-refresh]";
  // What asks the server again and again: the part, and the open alerts.
  const POLLS = `${PART}, #pcrud-alerts`;
  // Milliseconds after which a request that is not answered has failed.
  const TIMEOUT = 30_000;

  const isRefresh = (event) => event.detail.requestConfig?.elt.matches(PART) ?? false;

  const onRefresh = (name, listener) => {
    document.addEventListener(name, (event) => {
      if (isRefresh(event)) {
        listener(event);
      }
    });
  };

  // Elements that need JavaScript are hidden by default.
  const reveal = (root) => {
    root.querySelectorAll("[data-pcrud-needs-script]").forEach((element) => {
      element.hidden = false;
    });
  };

  // The notice says that the part may be out of date. htmx goes on polling, so that a later refresh may succeed.
  const setStale = (isStale) => {
    document.querySelectorAll("[data-pcrud-stale]").forEach((notice) => {
      notice.hidden = !isStale;
    });
  };

  // Do not refresh while the page is hidden.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.requestConfig?.elt.matches(POLLS) && document.hidden) {
      event.preventDefault();
    }
  });

  document.addEventListener("htmx:configRequest", (event) => {
    if (!event.target.matches(PART)) {
      return;
    }
    event.detail.timeout = TIMEOUT;
    // The server sends an empty response if this version is unchanged.
    const { pcrudState, pcrudNewest } = event.target.dataset;
    if (pcrudState) {
      event.detail.headers["X-Pcrud-State"] = pcrudState;
    }
    if (pcrudNewest) {
      event.detail.headers["X-Pcrud-Newest"] = pcrudNewest;
    }
  });

  // Another page may answer, for example the login page after a redirect.
  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    const polled = detail.requestConfig?.elt;
    if (polled?.matches(POLLS) && detail.shouldSwap && !detail.serverResponse.includes(`id="${polled.id}"`)) {
      detail.shouldSwap = false;
      detail.isError = true;
    }
  });

  onRefresh("htmx:afterRequest", ({ detail }) => {
    if (detail.successful) {
      setStale(false);
    }
  });
  // A request is also aborted when the user leaves the page, which is no failure.
  ["htmx:responseError", "htmx:sendError", "htmx:timeout"].forEach((name) => {
    onRefresh(name, () => setStale(true));
  });

  document.addEventListener("htmx:afterSwap", () => reveal(document));

  document.addEventListener("change", (event) => {
    // Not a search: its field changes with the click that leaves it, which would lead elsewhere.
    if (event.target.type !== "search" && event.target.closest("[data-pcrud-submit-on-change]")) {
      event.target.form.requestSubmit();
    }
  });

  // Addresses are short: a form of filters leaves out its empty fields. Fields that are shown stay so for the next change.
  document.addEventListener("formdata", (event) => {
    if (event.target.matches("[data-pcrud-without-empty]")) {
      [...event.formData].filter(([, value]) => value === "").forEach(([name]) => event.formData.delete(name));
      if (event.target.querySelector("details[open]")) {
        event.formData.set("unfolded", "1");
      }
    }
  });

  reveal(document);
})();
