#!/bin/sh
# Adds a toy method and a toy family to a copy of the sources, each a file and a line (and its `mod`), and runs the toys'
# own tests there. A toy output needs no line: `an_output_of_the_user_s_own_is_one_type` in tests/integration/live.rs.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
(cd "$root" && git ls-files -z | xargs -0 cp --parents -t "$copy")
cd "$copy"

cp tests/toys/corner.rs src/core/explain/
sed -i 's|^pub mod diffmask;|pub mod corner;\n&|' src/core/explain/mod.rs
sed -i 's|^    /// Attention through all blocks: .*|    /// A toy.\n    Corner: super::corner::Corner,\n&|' src/core/explain/methods.rs

cp tests/toys/toy_vit.rs src/core/vit/family/
sed -i 's|^mod vit;|mod toy_vit;\n&|' src/core/vit/family/mod.rs
sed -i 's|^    Vit = vit,|&\n    /// A toy.\n    Toy = toy_vit,|' src/core/vit/family/mod.rs

git -C "$root" diff --no-index --stat "$root/src/core" "$copy/src/core" || true
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-"$root/target"} cargo test --locked --package vitscope-core --lib toy
