"use strict";
// Sends our token with each press on rq-dashboard's pages, and shows what the answers say.
(function () {
  var token = document.querySelector('meta[name="ops-token"]').content;
  var told = document.getElementById("ops-told");
  var toldOfReading = false;

  function tell(text, wrong, ofReading) {
    told.textContent = text;
    told.className = wrong ? "ops-wrong" : "";
    told.hidden = !text;
    toldOfReading = ofReading;
  }

  jQuery(document).ajaxSend(function (_event, request, settings) {
    if (settings.type === "POST") { request.setRequestHeader("X-CSRF-Token", token); }
  });

  jQuery(document).ajaxComplete(function (_event, answer, settings) {
    var reading = settings.type !== "POST";
    var good = answer.status === 200 && Boolean(answer.responseJSON);
    if (reading && good) {
      if (toldOfReading) { tell("", false, false); }
      return;
    }
    var said = answer.responseJSON && answer.responseJSON.message;
    tell(said || "No answer, or no session any more: load the page again.", !good, reading);
  });
})();
