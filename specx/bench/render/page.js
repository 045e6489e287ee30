"use strict";
const button = document.getElementById("download");
button.hidden = false;
button.addEventListener("click", () => {
  const text = document.getElementById("data").textContent;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "bench.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
