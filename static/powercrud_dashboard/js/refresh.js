// A page that nobody looks at does not ask the server for news.
document.addEventListener("htmx:beforeRequest", (event) => {
  const refreshes = event.target.matches("[data-pcrud-refresh]");
  if (refreshes && document.hidden) {
    event.preventDefault();
  }
});
