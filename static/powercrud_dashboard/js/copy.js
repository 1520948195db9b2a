// Buttons that copy the text of another element.
(() => {
  const select = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-pcrud-copy]");
    if (!button) {
      return;
    }
    const source = document.getElementById(button.dataset.pcrudCopy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = button.dataset.pcrudCopied;
    } catch {
      // The clipboard requires HTTPS. Select the text, so that the user can copy it.
      select(source);
    }
  });
})();
