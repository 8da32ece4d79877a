#!/bin/sh
# make install puts everything where it belongs, the links work, make uninstall leaves no file behind.
set -eu
cd "$TOP"
to=$(mktemp -d)
trap 'rm -rf "$to"' EXIT
flavour=$(basename "$BUILD")
unset MAKEFLAGS MAKELEVEL MFLAGS || true
make -s FLAVOUR="$flavour" DESTDIR="$to" PREFIX=/opt/x install > "$to/log"
p=$to/opt/x
"$p/bin/lora" --version | grep -q '^lora [0-9]'
"$p/bin/lora" help --as names | while read -r name others; do
    [ -s "$p/share/man/man1/lora-$name.1" ] || { echo "no page of $name"; exit 1; }
    for other in $others; do
        # The link is the command: its help is that command's.
        "$p/bin/$other" --help | head -n 1 | grep -q "^lora $name: " || { echo "link $other is not $name"; exit 1; }
    done
done
for f in bash-completion/completions/lora zsh/site-functions/_lora fish/vendor_completions.d/lora.fish man/man1/lora.1; do
    [ -s "$p/share/$f" ] || { echo "no $f"; exit 1; }
done
# The installed program finds the golden files that were installed with it.
(cd / && "$p/bin/lora" verify rng tokenizer schedule | tail -n 1 | grep -q 'all within their limits') || { echo "verify fails"; exit 1; }
make -s FLAVOUR="$flavour" DESTDIR="$to" PREFIX=/opt/x uninstall > "$to/log"
left=$(find "$p" ! -type d)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
