"use strict";
const header = document.querySelector("header"), told = header.querySelector("output");
const sets = [...document.querySelectorAll("fieldset")], place = `difference-feedback labels ${header.dataset.sheet}`;
const chosen = (set) => set.querySelector(":checked").value;
const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

const restore = () => {
  const labels = new Map(JSON.parse(localStorage.getItem(place)));
  for (const set of sets)
    for (const radio of set.elements) radio.checked = radio.value === (labels.get(set.name) ?? "");
};
const keep = () => localStorage.setItem(place, JSON.stringify(sets.map((set) => [set.name, chosen(set)])));
const tell = (act) => {
  let lost = "";
  try { act(); } catch { lost = "; this browser keeps no labels, so download them before you leave"; }
  told.textContent = `${sets.filter(chosen).length} of ${sets.length} labelled${lost}`;
};

header.hidden = false;
for (const set of sets) set.hidden = false;
tell(restore);
document.addEventListener("change", () => tell(keep));
document.querySelector("#next").addEventListener("click", () => {
  const set = sets.find((one) => !chosen(one));
  if (!set) return;
  set.parentElement.scrollIntoView();
  set.querySelector(":checked").focus({ preventScroll: true });
});
document.querySelector("#download").addEventListener("click", () => {
  const lines = sets.map((set) => `${quoted(JSON.parse(set.name))},${chosen(set)}\r\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeffepisode_id,label\r\n", ...lines], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
});
