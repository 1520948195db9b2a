// Row selection in the task list: selects all rows of a page, and tells how many are selected.
(() => {
  const LIST = "#pcrud-tasks";

  const rowBoxes = () => [...document.querySelectorAll(`${LIST} input[name="selected"]`)];
  const hasSelection = () => document.querySelector(`${LIST} input[type="checkbox"]:checked`) !== null;

  const tellCount = () => {
    const count = rowBoxes().filter((box) => box.checked).length;
    document.querySelectorAll("[data-pcrud-ticked]").forEach((place) => {
      const text = count ? place.dataset.pcrudTicked.replace("0", count) : "";
      if (place.textContent !== text) {
        place.textContent = text;
      }
    });
  };

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pcrud-select-page]")) {
      rowBoxes().forEach((box) => {
        box.checked = event.target.checked;
      });
    }
    tellCount();
  });

  // While rows are selected, no row moves: the list announces new tasks instead of inserting them.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.target.matches(LIST) && hasSelection()) {
      event.detail.headers["X-Pcrud-Hold"] = rowBoxes().map((box) => box.value).join();
    }
  });

  document.addEventListener("htmx:afterSwap", tellCount);
  tellCount();

  // A menu of a row is closed by a click elsewhere, and by Escape.
  const closeMenus = (besides) => {
    document.querySelectorAll("details.pcrud-more[open]").forEach((menu) => {
      menu.open = menu === besides;
    });
  };
  document.addEventListener("click", (event) => closeMenus(event.target.closest("details.pcrud-more")));
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && document.querySelector("details.pcrud-more[open]");
    if (menu) {
      closeMenus();
      menu.querySelector("summary").focus();
    }
  });
})();
