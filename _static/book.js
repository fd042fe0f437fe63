// A figure in a tab or a fold that was closed has no width yet: let it fit when it is shown.
addEventListener("change", (event) => {
  if (event.target.matches(".sd-tab-set > input")) dispatchEvent(new Event("resize"));
});
addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
