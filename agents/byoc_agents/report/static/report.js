"use strict";
(() => {
  const text = document.getElementById("find");
  const choices = [...document.querySelectorAll("select[data-column]")];
  const rows = [...document.querySelectorAll("#sends tbody tr")];
  const shown = document.getElementById("shown");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const words = text.value.toLowerCase().split(" ").filter(Boolean);
    let count = 0;
    rows.forEach((row, n) => {
      const fits = words.every((word) => texts[n].includes(word)) &&
        choices.every((c) => !c.value || row.cells[c.dataset.column].dataset.key === c.value);
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    shown.textContent = count + " of " + rows.length + " shown";
  };
  text.addEventListener("input", filter);
  choices.forEach((choice) => choice.addEventListener("change", filter));
  document.querySelector(".filters").hidden = false;
  filter();
})();
