#!/bin/sh
# The report of a training opens in a browser: every picture is decoded, every chart is drawn, nothing is loaded from elsewhere.
set -eu
cd "$TOP"
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || { echo "no Chromium here"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$BUILD/tests/test_report" "$dir/report.html"
# A script put behind the page writes what the browser made of it into the page's title.
cat "$dir/report.html" - > "$dir/probed.html" <<'END'
<script>onload = () => {
  const pictures = [...document.images], bad = pictures.filter(i => !i.complete || i.naturalWidth === 0).length;
  const drawn = [...document.querySelectorAll('svg')].filter(s => s.getBBox().width > 800 && s.getBBox().height > 200).length;
  JSON.parse(document.getElementById('history').textContent);
  document.title = `pictures ${pictures.length} bad ${bad} charts ${drawn} requests ${performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length}`;
}</script>
END
timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$dir/profile" --virtual-time-budget=5000 --dump-dom \
    "file://$dir/probed.html" > "$dir/dom" 2> "$dir/log" || { cat "$dir/log"; exit 1; }
title=$(sed -n 's/.*<title>\(.*\)<\/title>.*/\1/p' "$dir/dom" | head -n 1)
[ "$title" = "pictures 7 bad 0 charts 3 requests 0" ] || { echo "the browser says: $title"; exit 1; }
