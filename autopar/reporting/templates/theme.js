(function () {
  var choice = null;
  var asked = /[#&]theme=(light|dark)/.exec(location.hash);
  if (asked) { choice = asked[1]; }
  if (!choice) { try { choice = localStorage.getItem("autopar-theme"); } catch (e) { choice = null; } }
  if (choice === "light" || choice === "dark") { document.documentElement.dataset.theme = choice; }
})();
