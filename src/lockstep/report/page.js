// Small switches: token ids, and which samples are shown.
"use strict";
{
  document.getElementById("ids")?.addEventListener("change", (event) => {
    const rows = document.getElementById("token-rows");
    rows.classList.toggle("ids-on", event.target.checked);
    rows.classList.toggle("ids-off", !event.target.checked);
  });
  for (const input of document.querySelectorAll("input[name=kind]")) {
    input.addEventListener("change", () => {
      for (const card of document.querySelectorAll(".card")) {
        card.hidden = input.value !== "all" && card.dataset.kind !== input.value;
      }
    });
  }
}
