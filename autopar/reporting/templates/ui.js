(function () {
  "use strict";
  var root = document.documentElement;
  var system = matchMedia("(prefers-color-scheme: dark)");

  function css(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }

  /* ---- charts ---- */
  var config = {
    responsive: true, displaylogo: false, showTips: false, displayModeBar: true,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]
  };

  function themed(layout) {
    var change = {
      "font.color": css("--text"),
      "hoverlabel.bgcolor": css("--raised"), "hoverlabel.bordercolor": css("--line"),
      "hoverlabel.font.color": css("--text"),
      "modebar.color": css("--muted"), "modebar.activecolor": css("--accent"),
      "modebar.bgcolor": "rgba(0,0,0,0)"
    };
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) {
        change[key + ".gridcolor"] = css("--grid");
        change[key + ".linecolor"] = css("--line");
        change[key + ".zerolinecolor"] = css("--muted");
        change[key + ".title.font.color"] = css("--muted");
      }
    });
    (layout.annotations || []).forEach(function (_, i) {
      change["annotations[" + i + "].font.color"] = css("--text");
      change["annotations[" + i + "].bgcolor"] = css("--page");
    });
    return change;
  }

  function inkTraces(figure) {
    var found = [];
    figure.data.forEach(function (trace, i) { if (trace.meta === "ink") { found.push(i); } });
    return found;
  }

  function inkStyle() {
    return {
      "marker.color": css("--text"), "marker.line.color": css("--page"),
      "error_x.color": css("--text")
    };
  }

  function set(target, path, value) {
    var keys = path.replace(/\[(\d+)\]/g, ".$1").split(".");
    var last = keys.pop();
    keys.forEach(function (key) { target = target[key] = target[key] || {}; });
    target[last] = value;
  }

  /* Phones: smaller type, and room for a legend of one column. */
  function narrow(figure, width) {
    var layout = figure.layout;
    if (width >= 560) { return; }
    layout.font.size = 11;
    layout.legend.font.size = 11;
    var entries = layout.showlegend === false ? 0 : figure.data.filter(function (trace) {
      return trace.showlegend !== false && trace.name;
    }).length;
    if (entries > 1) {
      layout.legend.maxheight = 1;
      layout.height += 17 * Math.max(entries - 2, 0);
    }
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key) && layout[key].tickfont) { layout[key].tickfont.size = 10; }
    });
  }

  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));

  function draw(node) {
    if (node.dataset.done || !window.Plotly) { return Promise.resolve(); }
    node.dataset.done = "1";
    var figure = JSON.parse(document.getElementById(node.dataset.figure).textContent);
    var change = themed(figure.layout);
    Object.keys(change).forEach(function (path) { set(figure.layout, path, change[path]); });
    inkTraces(figure).forEach(function (i) {
      var style = inkStyle();
      Object.keys(style).forEach(function (path) {
        if (path.indexOf("error_x") !== 0 || figure.data[i].error_x) {
          set(figure.data[i], path, style[path]);
        }
      });
    });
    narrow(figure, node.clientWidth);
    node.textContent = "";
    return window.Plotly.newPlot(node, figure.data, figure.layout, config);
  }

  function drawAll() { return Promise.all(plots.map(draw)); }

  function restyle() {
    plots.forEach(function (node) {
      if (!node.dataset.done) { return; }
      window.Plotly.relayout(node, themed(node.layout));
      var inks = inkTraces(node);
      if (inks.length) { window.Plotly.restyle(node, inkStyle(), inks); }
    });
  }

  function drawNext() {
    var node = plots.filter(function (n) { return !n.dataset.done; })[0];
    if (!node) { root.dataset.ready = "1"; return; }
    draw(node).then(function () { setTimeout(drawNext, 0); });
  }

  /* ---- theme ---- */
  var order = ["system", "light", "dark"];
  var button = document.getElementById("theme");

  function current() { return root.dataset.theme || "system"; }

  function show() { button.textContent = "Theme: " + current(); }

  function apply(choice, keep) {
    if (choice === "system") { delete root.dataset.theme; } else { root.dataset.theme = choice; }
    if (keep) {
      try { localStorage.setItem("autopar-theme", choice); } catch (e) { /* private mode */ }
    }
    show();
    restyle();
  }

  button.hidden = false;
  show();
  button.addEventListener("click", function () {
    apply(order[(order.indexOf(current()) + 1) % order.length], true);
  });
  system.addEventListener("change", restyle);

  /* ---- printing: light, everything open ---- */
  var before = null;
  addEventListener("beforeprint", function () {
    before = { theme: current(), closed: [] };
    document.querySelectorAll("details:not([open])").forEach(function (node) {
      before.closed.push(node);
      node.open = true;
    });
    drawAll();
    apply("light", false);
  });
  addEventListener("afterprint", function () {
    if (!before) { return; }
    before.closed.forEach(function (node) { node.open = false; });
    apply(before.theme, false);
    before = null;
  });

  /* ---- tables: sort and search ---- */
  function value(row, index) {
    var cell = row.cells[index];
    if (cell.dataset.v === undefined) { return cell.textContent.toLowerCase(); }
    return cell.dataset.v === "" ? -Infinity : parseFloat(cell.dataset.v);
  }

  function sortBy(table, head, index) {
    var down = head.getAttribute("aria-sort") === "ascending";
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) {
      var x = value(a, index), y = value(b, index);
      var order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
    Array.prototype.forEach.call(head.parentNode.cells, function (cell) {
      cell.removeAttribute("aria-sort");
    });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  document.querySelectorAll("table.sortable").forEach(function (table) {
    if (table.tBodies[0].rows.length < 3) { return; }
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, index) {
      var press = document.createElement("button");
      press.type = "button";
      press.textContent = head.textContent;
      press.title = "Sort";
      head.textContent = "";
      head.appendChild(press);
      press.addEventListener("click", function () { sortBy(table, head, index); });
    });
  });

  document.querySelectorAll(".search").forEach(function (box) {
    var table = box.nextElementSibling.querySelector("table");
    var count = box.querySelector(".count");
    box.querySelector("input").addEventListener("input", function (event) {
      var words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      Array.prototype.forEach.call(table.tBodies[0].rows, function (row) {
        var text = row.textContent.toLowerCase();
        var hit = words.every(function (word) { return text.indexOf(word) >= 0; });
        row.hidden = !hit;
        shown += hit ? 1 : 0;
      });
      count.textContent = words.length ? shown + " of " + table.tBodies[0].rows.length : "";
    });
  });

  /* ---- downloads ---- */
  document.querySelectorAll(".download").forEach(function (node) {
    node.addEventListener("click", function () {
      var data = JSON.parse(document.getElementById(node.dataset.source).textContent);
      var blob = new Blob([JSON.stringify(data, null, 1) + "\n"], { type: "application/json" });
      var link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = node.dataset.name;
      link.click();
      setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
    });
  });

  /* ---- where am I ---- */
  var links = {};
  document.querySelectorAll(".toc a").forEach(function (a) {
    links[a.getAttribute("href").slice(1)] = a;
  });
  if (window.IntersectionObserver) {
    var seen = {};
    var parts = Array.prototype.slice.call(document.querySelectorAll("main > section"));
    var watch = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) { seen[entry.target.id] = entry.isIntersecting; });
      var first = parts.filter(function (part) { return seen[part.id]; })[0];
      parts.forEach(function (part) {
        var link = links[part.id];
        if (part === first) { link.setAttribute("aria-current", "true"); }
        else if (first) { link.removeAttribute("aria-current"); }
      });
    }, { rootMargin: "-10% 0px -60% 0px" });
    parts.forEach(function (part) { watch.observe(part); });
  }

  drawNext();
})();
