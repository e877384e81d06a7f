
for (const viewer of document.querySelectorAll(".viewer")) {
  const range = viewer.querySelector("input[type=range]");
  if (!range) continue;
  const slices = viewer.querySelectorAll(".slice");
  const show = () => {
    const chosen = Number(range.value) - 1;
    slices.forEach((slice, index) => { slice.hidden = index !== chosen; });
    range.setAttribute("aria-valuetext", slices[chosen].dataset.title);
  };
  range.addEventListener("input", show);
  range.parentElement.hidden = false;
  show();
}
