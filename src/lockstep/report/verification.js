// The table of claims: which verdicts are shown, and which names.
"use strict";
{
  const rows = [...document.querySelectorAll("#claim-rows tr")];
  const search = document.getElementById("search");
  const shown = document.getElementById("shown");
  const update = () => {
    const kind = document.querySelector("input[name=verdict]:checked")?.value ?? "all";
    const words = search.value.toLowerCase();
    let n = 0;
    for (const row of rows) {
      const fits = kind === "all" || (kind === "exact" ? row.dataset.kind === "pass" : row.dataset.kind !== "pass");
      row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
      n += row.hidden ? 0 : 1;
    }
    shown.textContent = `${n} of ${rows.length} shown`;
  };
  for (const input of document.querySelectorAll("input[name=verdict]")) input.addEventListener("change", update);
  search?.addEventListener("input", update);
  if (search) update();
}
