// Read-out of plots: pointer, touch or arrow keys. The page is whole without it.
"use strict";
(function () {
  var near = function (rows, x) {
    var lo = 0, hi = rows.length - 1;
    while (hi - lo > 1) { var mid = (lo + hi) >> 1; if (rows[mid][0] < x) lo = mid; else hi = mid; }
    return Math.abs(rows[lo][0] - x) <= Math.abs(rows[hi][0] - x) ? rows[lo] : rows[hi];
  };
  var say = function (v) {
    var a = Math.abs(v);
    return a !== 0 && (a < 1e-3 || a >= 1e7) ? v.toExponential(2) : v.toLocaleString("en", { maximumSignificantDigits: 5 });
  };
  var add = function (parent, tag, name, text) {
    var e = document.createElement(tag);
    if (name) e.className = name;
    if (text !== undefined) e.textContent = text;
    parent.appendChild(e);
    return e;
  };
  document.querySelectorAll("figure[data-chart]").forEach(function (figure) {
    var data = JSON.parse(figure.getAttribute("data-chart")), plot = figure.querySelector(".plot");
    var all = data.s.filter(function (s) { return s.p.length; });
    if (!all.length) return;
    var longest = all.reduce(function (a, b) { return b.p.length > a.p.length ? b : a; });
    var cursor = add(plot, "div", "cursor"), tip = add(plot, "div", "tip"), at = 0;
    var hide = function () { cursor.hidden = tip.hidden = true; };
    cursor.style.display = tip.style.display = "";
    var show = function (x) {
      var row = near(longest.p, x);
      at = longest.p.indexOf(row);
      var share = (row[0] - data.x[0]) / (data.x[1] - data.x[0] || 1);
      cursor.style.left = share * 100 + "%";
      tip.textContent = "";
      add(tip, "b", "", data.u + " " + row[0].toLocaleString("en"));
      all.forEach(function (s) {
        var p = near(s.p, row[0]);
        var line = add(tip, "div", "tone-" + s.t);
        add(line, "i");
        add(line, "span", "", s.n + ": " + p.slice(1).map(say).join(" – ") + (p[0] !== row[0] && s !== longest && s.p.length < longest.p.length / 2 ? " (" + data.u + " " + p[0].toLocaleString("en") + ")" : ""));
      });
      cursor.hidden = tip.hidden = false;
      var room = plot.clientWidth, left = share * room + 10;
      if (left + tip.offsetWidth > room) left = share * room - tip.offsetWidth - 10;
      tip.style.left = Math.max(Math.min(left, room - tip.offsetWidth), 0) + "px";
    };
    hide();
    plot.addEventListener("pointermove", function (e) {
      var box = plot.getBoundingClientRect();
      show(data.x[0] + (e.clientX - box.left) / box.width * (data.x[1] - data.x[0]));
    });
    plot.addEventListener("pointerdown", function (e) {
      var box = plot.getBoundingClientRect();
      show(data.x[0] + (e.clientX - box.left) / box.width * (data.x[1] - data.x[0]));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.tabIndex = 0;
    plot.setAttribute("aria-label", "Arrow keys read values");
    plot.setAttribute("role", "group");
    plot.addEventListener("keydown", function (e) {
      var step = e.key === "ArrowRight" ? 1 : e.key === "ArrowLeft" ? -1 : 0;
      if (!step) { if (e.key === "Escape") hide(); return; }
      e.preventDefault();
      at = Math.min(Math.max(at + step * Math.max(1, Math.round(longest.p.length / 60)), 0), longest.p.length - 1);
      show(longest.p[at][0]);
    });
  });
})();
