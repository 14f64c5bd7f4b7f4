# All a fresh Debian or Ubuntu machine needs:
#
#   make demo               explain a real clip; `make demo VIDEO=path` takes yours
#   make test               all the tests, lints and documentation
#   make install            put `vitscope` into ~/.cargo/bin
#   make plugin             put the GStreamer element into ~/.local/share/gstreamer-1.0/plugins
#   make bench-peers        time it beside ONNX Runtime, OpenVINO and PyTorch
#   make check-cuda         compile it for CUDA, with or without a GPU
#   make check-analytics    check what needs GStreamer 1.26, with or without it
#   make check-toys         check that a method and a family are each a file and a line

CLIP := demo/cockatoo.mp4
VIDEO ?= $(CLIP)

# The Python package that carries the demo clip.
CLIP_PACKAGE := imageio==2.9.0
CLIP_PATH := imageio/resources/images/cockatoo.mp4
CLIP_SHA256 := 5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5

BUILD_PACKAGES := build-essential pkg-config ca-certificates curl \
	libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
PLUGIN_PACKAGES := gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
	gstreamer1.0-plugins-ugly gstreamer1.0-libav
# Ubuntu has neither: there, the page is tested where a chromedriver from elsewhere is on the path.
BROWSER_PACKAGES := $(if $(filter debian,$(shell . /etc/os-release 2>/dev/null && echo $$ID)),chromium chromium-driver)
TEST_PACKAGES := ffmpeg gstreamer1.0-tools python3-gi gir1.2-gstreamer-1.0 \
	gir1.2-gst-rtsp-server-1.0 gstreamer1.0-rtsp gstreamer1.0-pipewire pipewire wireplumber dbus \
	$(BROWSER_PACKAGES)

MIN_RUST := 1.92
# Where the official installer puts cargo; a shell that was open before does not know of it.
CARGO_HOME ?= $(HOME)/.cargo
export PATH := $(CARGO_HOME)/bin:$(PATH)

.PHONY: demo test picture install plugin bench-peers check-cuda check-analytics check-toys packages test-packages pip venv python-packages rust

demo: packages rust $(if $(filter $(CLIP),$(VIDEO)),$(CLIP))
	cargo build --release --locked --package vitscope
	@mkdir -p demo
	@name=$$(basename "$(VIDEO)"); out="demo/$${name%.*}"; set -ex; \
	target/release/vitscope file "$(VIDEO)" "$$out-explained.mp4" \
		--scores "$$out.jsonl" --sheet "$$out.png" --overwrite; \
	{ set +x; } 2>/dev/null; \
	echo "video          $$out-explained.mp4"; \
	echo "JSON Lines     $$out.jsonl"; \
	echo "contact sheet  $$out.png"

# Tests run by nextest where it is installed, because it ends tests that hang. A warning of GLib is a programming error.
test: export G_DEBUG := fatal_warnings
test: packages test-packages rust
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets --features lrp -- -D warnings
	cargo clippy --locked --package vitscope --all-targets --no-default-features -- -D warnings
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --workspace --features lrp; \
		else cargo test --locked --workspace --features lrp --lib --bins --tests; fi
	cargo test --locked --workspace --features lrp --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --features lrp

# The picture of the README: one frame of the sample clip, four methods.
picture: packages test-packages rust $(CLIP)
	cargo build --release --locked --package vitscope
	ffmpeg -v error -y -i $(CLIP) -ss 13.8 -frames:v 1 -vf scale=640:-1 demo/cockatoo.png
	target/release/vitscope still demo/cockatoo.png models/everyday/cockatoo.png --overwrite \
		--target bird --method diffmask,chefer,gradcam,libragrad

install: packages rust
	cargo install --locked --path .

# Where GStreamer looks for a user's plugins.
XDG_DATA_HOME ?= $(HOME)/.local/share
USER_PLUGINS := $(XDG_DATA_HOME)/gstreamer-1.0/plugins

plugin: packages rust
	$(call install_packages,gstreamer1.0-tools)
	cargo build --release --locked --package vitscope-gst
	mkdir -p "$(USER_PLUGINS)"
	cp target/release/libgstvitscope.so "$(USER_PLUGINS)"
	gst-inspect-1.0 vitscope >/dev/null
	@echo "installed      $(USER_PLUGINS)/libgstvitscope.so"
	@echo "documentation  gst-inspect-1.0 vitscope"

# Passes take a quarter of an hour on two cores, and videos as long.
bench-peers: packages rust venv $(CLIP)
	cargo build --release --locked --package vitscope
	[ -x target/peers/bin/python ] || python3 -m venv target/peers
	target/peers/bin/pip install --quiet onnxruntime onnx openvino timm torch \
		opencv-python-headless safetensors grad-cam
	target/peers/bin/python tests/benches/peers/forward.py target/release/vitscope
	target/peers/bin/python tests/benches/peers/whole_job.py target/release/vitscope $(VIDEO)

check-cuda: packages rust pip
	tests/cuda/check.sh

check-toys: packages rust
	tests/toys/check.sh

# Runs the element's tests where GStreamer is 1.26, as in Debian 13. Elsewhere the code is checked and not linked: the
# bindings ask for no library where they are built for docs.rs.
check-analytics: packages rust
	if pkg-config --atleast-version 1.26 gstreamer-analytics-1.0; then \
		G_DEBUG=fatal_warnings cargo test --locked --test integration --features v1_26 plugin; \
	else DOCS_RS=1 cargo clippy --locked --package vitscope-gst --features v1_26 --target-dir target/analytics -- -D warnings; fi

# Installs the Debian packages in $(1) that are missing; elsewhere only names them.
define install_packages
@if ! command -v dpkg-query >/dev/null; then \
	echo "this is no Debian; what it calls $(1) must be installed"; exit 0; fi; \
missing=; for package in $(1); do \
	dpkg-query -W -f '$${db:Status-Status}\n' "$$package" 2>/dev/null | grep -qx installed \
		|| missing="$$missing $$package"; done; \
if [ -n "$$missing" ]; then \
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	echo "installing the Debian packages that are missing:$$missing"; \
	$$sudo apt-get update -q \
		&& $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
fi
endef

packages:
	$(call install_packages,$(BUILD_PACKAGES) $(PLUGIN_PACKAGES))

test-packages:
	$(call install_packages,$(TEST_PACKAGES))

# True where rustc is there and new enough.
new_enough = printf '%s\n' $(MIN_RUST) "$$(rustc --version 2>/dev/null | cut -d ' ' -f 2)" | sort -V -C

rust: packages
	@if ! { $(new_enough); }; then \
		if command -v rustup >/dev/null; then \
			echo "Rust is older than $(MIN_RUST): updating it by rustup"; \
			rustup update stable; \
		else \
			echo "no Rust of at least $(MIN_RUST): installing it by its official installer, https://rustup.rs"; \
			curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy; \
		fi; \
	fi
	@$(new_enough) \
		|| { echo "rustc is still older than $(MIN_RUST); is \`stable\` the default of rustup?"; exit 1; }

$(CLIP):
	@$(MAKE) --no-print-directory pip
	mkdir -p demo
	pip3 download --quiet --no-deps --only-binary :all: --dest demo $(CLIP_PACKAGE)
	cd demo && python3 -m zipfile -e imageio-*.whl wheel
	echo "$(CLIP_SHA256)  demo/wheel/$(CLIP_PATH)" | sha256sum --check --quiet
	mv demo/wheel/$(CLIP_PATH) $@
	rm -r demo/wheel demo/imageio-*.whl

# A Python that did not come from Debian may bring its own.
pip:
	@command -v pip3 >/dev/null || $(MAKE) --no-print-directory python-packages

venv:
	@python3 -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory python-packages

python-packages:
	$(call install_packages,python3-pip python3-venv)
