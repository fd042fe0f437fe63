// Draws one plotly figure into its <figure>: native controls, the page's theme, any width. `chestxai.plots.page` fills in
// ID, SPEC (data, layout, menus) and VERSION.
(() => {
  const figure = document.getElementById(ID), plot = figure.querySelector(".cx-plot"), page = document.documentElement;
  const spec = SPEC, least = spec.least;
  // Colours of a figure on a light page, and what they become on a dark one.
  const dark = {
    "rgb(255,255,255)": "#14181e", "rgba(255,255,255,0.8)": "rgba(20,24,30,0.8)", "#222222": "#eeeeee",
    "#444444": "#cccccc", "#555555": "#bbbbbb", "#666666": "#aaaaaa", "#777777": "#aaaaaa", "#888888": "#999999",
    "#bbbbbb": "#666666", "#ececec": "#333a44",
  };
  const isDark = () => (page.dataset.theme || page.dataset.jpTheme) === "dark";
  const themed = part => JSON.parse(JSON.stringify(part), (key, value) =>
    !isDark() || typeof value !== "string" || key === "source" ? value
      : dark[value] ?? value.replace(/color:(#\w+)/g, (all, color) => `color:${dark[color] ?? color}`));
  const scale = () => Math.min(1, figure.clientWidth / least) || 1;
  const width = () => spec.layout.width || figure.clientWidth / scale() || least;
  const fit = () => {
    plot.style.width = `${width()}px`;
    plot.style.transform = scale() < 1 ? `scale(${scale()})` : "";
    plot.parentElement.style.height = `${plot.offsetHeight * scale()}px`;
  };
  const names = () => figure.querySelectorAll(".legendtoggle").forEach(item => {
    const name = item.parentElement.textContent.trim();
    Object.entries({tabindex: 0, role: "button", "aria-label": `show or hide ${name}`}).forEach(a => item.setAttribute(...a));
    item.onkeydown = event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      const group = plot.data.flatMap((t, i) => t.name === name && t.visible !== false ? [i] : []);
      Plotly.restyle(plot, {visible: group.some(i => plot.data[i].visible === "legendonly") || "legendonly"}, group)
        .then(() => [...figure.querySelectorAll(".legendtoggle")]
          .find(i => i.parentElement.textContent.trim() === name)?.focus());
    };
  });
  const choose = select => {
    const {method, args} = spec.menus[select.dataset.menu].options[select.selectedIndex];
    return Plotly[method](plot, ...themed(args));
  };
  const selects = () => [...figure.querySelectorAll(".cx-controls select")];
  const draw = async how => {
    await how(plot, themed(spec.data), {...themed(spec.layout), width: width()}, {displayModeBar: false});
    for (const select of selects()) if (select.selectedIndex !== spec.menus[select.dataset.menu].active) await choose(select);
    names();
    fit();
  };
  const inBook = page.dataset.content_root;
  const load = () => window.chestxaiPlotly ??= new Promise((done, fail) => {
    if (window.Plotly) return done();
    const script = document.createElement("script");
    script.src="https://cdn.plot.ly/plotly-VERSION.min.js";
    if (inBook !== undefined) script.src = `${inBook}_static/plotly.min.js`;
    Object.assign(script, {onload: done, onerror: fail});
    document.head.append(script);
  });
  load().then(() => draw((...all) => Plotly.newPlot(...all))).then(() => {
    plot.on("plotly_afterplot", names);
    for (const select of selects()) select.onchange = () => choose(select);
    let last = figure.clientWidth;
    new ResizeObserver(() => {
      if (figure.clientWidth === last) return;
      last = figure.clientWidth;
      Plotly.relayout(plot, {width: width()}).then(fit);
    }).observe(figure);
    new MutationObserver(() => draw((...all) => Plotly.react(...all)))
      .observe(page, {attributeFilter: ["data-theme", "data-jp-theme"]});
  }, () => { plot.textContent = "The drawing needs plotly.js, which could not be loaded; its data are below."; });
})();
