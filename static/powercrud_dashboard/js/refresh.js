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
  const refreshes = event.target.matches("[data-pcrud-refresh]");
  if (refreshes && document.hidden) {
    event.preventDefault();
  }
});
