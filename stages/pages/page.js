"use strict";
for (const axis of document.querySelectorAll("select.axis")) {
  axis.form.hidden = false;
  const charts = axis.closest(".curves").querySelectorAll("[data-axis]");
  const turn = () => charts.forEach((chart) => chart.toggleAttribute("hidden", chart.dataset.axis !== axis.value));
  axis.addEventListener("change", turn);
  turn();
}
const filters = document.querySelector("#filters");
if (filters) {
  const more = document.querySelector("#more"), told = document.querySelector("#matches");
  const pairs = [...document.querySelectorAll("article.pair")], lists = [...filters.querySelectorAll("select")];
  const step = Number(more.textContent.match(/\d+/)[0]);
  let most = step;
  const show = () => {
    let matched = 0;
    for (const pair of pairs) {
      const fits = lists.every((list) => list.value === "" || pair.dataset[list.name] === list.value);
      matched += fits;
      pair.hidden = !fits || matched > most;
    }
    told.textContent = `${Math.min(matched, most)} of ${matched} shown`;
    more.hidden = matched <= most;
  };
  filters.hidden = false;
  filters.addEventListener("change", () => { most = step; show(); });
  filters.addEventListener("reset", () => { most = step; setTimeout(show); });
  more.addEventListener("click", () => { most += step; show(); });
  show();
}
