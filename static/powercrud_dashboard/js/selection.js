// Ticked rows of the task list: tick a whole page, and keep the ticks through refreshes.
(() => {
  const LIST = "#pcrud-tasks";
  let ticked = new Set();

  const boxes = () => document.querySelectorAll(`${LIST} input[type="checkbox"]`);
  const rowBoxes = () => document.querySelectorAll(`${LIST} input[name="selected"]`);

  const showPageBox = () => {
    const label = document.querySelector(`${LIST} .pcrud-select-page`);
    if (label) {
      label.hidden = false;
    }
  };

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pcrud-select-page]")) {
      rowBoxes().forEach((box) => {
        box.checked = event.target.checked;
      });
    }
  });

  document.addEventListener("htmx:beforeSwap", () => {
    ticked = new Set([...boxes()].filter((box) => box.checked).map((box) => box.id));
  });

  document.addEventListener("htmx:afterSwap", () => {
    showPageBox();
    boxes().forEach((box) => {
      box.checked = ticked.has(box.id);
    });
  });

  showPageBox();
})();
