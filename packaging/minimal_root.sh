#!/bin/sh
# Runs a bundle in a fresh Debian root without Python and Node, as a user without home or rights.
#
#     sudo packaging/minimal_root.sh BUNDLE MODEL IMAGE [SUITE]
#
# Needs root and debootstrap. The root is kept in .work/minimal-root and used again.
set -eu

bundle=$1 model=$2 image=$3 suite=${4:-bookworm}
root=$(dirname "$0")/../.work/minimal-root
app="opt/Herz & Röntgen 心電図"
nobody=65534

if [ ! -e "$root/.complete" ]; then
    rm -rf "$root"
    debootstrap --variant=minbase "$suite" "$root"
    touch "$root/.complete"
fi
for tool in python3 python node nodejs; do
    if chroot "$root" sh -c "command -v $tool" >/dev/null; then
        echo "expected a root without $tool; remove $root and start again" >&2
        exit 1
    fi
done

rm -rf "$root/opt" && mkdir -p "$root/$app"
cp -a "$bundle" "$root/$app/vision-sidecar"
cp -a "$model" "$root/$app/vision-model"
cp "$image" "$root/$app/image.png"
chown -R 0:0 "$root/$app" && chmod -R u+rwX,go+rX,go-w "$root/$app"
install -d -o $nobody -g $nobody "$root/opt/out"

# An empty environment (no HOME, no locale), no network, and /proc as every desktop has it.
run() {
    unshare --net --pid --fork --mount-proc="$root/proc" \
        chroot --userspec=$nobody:$nobody "$root" \
        /usr/bin/env -i "/$app/vision-sidecar/vision-sidecar" "$@"
}
run verify --model "/$app/vision-model"
run encode "/$app/image.png" --model "/$app/vision-model" --out /opt/out
ls -l "$root/opt/out"
[ -s "$root/opt/out/image.npz" ] && [ -s "$root/opt/out/image.heatmap.png" ]
echo "encode and verify ran in a $suite root without Python and Node, as user $nobody without a home"
