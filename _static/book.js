// A figure in a fold that was closed has no width yet: let it fit when it is shown.
addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
