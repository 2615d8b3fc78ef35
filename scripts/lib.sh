# Shared by the scripts: where we are, how to say what is going on, and what must be there.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '\n=== %s\n' "$*" >&2; }

# need COMMAND WHAT: fails with the way to get it.
need() { command -v "$1" >/dev/null || { echo "$1 is missing: $2" >&2; exit 2; }; }

need cargo "install Rust with rustup (the toolchain is pinned in rust-toolchain.toml)"
need cc "install a C compiler (Debian: apt-get install build-essential)"

# lab_packages [COMMAND...]: Debian packages that the tests with network namespaces need, and those of the same name as
# further commands: installed if we are root, named if we are not.
lab_packages() {
  local missing=() further
  for further in "$@"; do command -v "$further" >/dev/null || missing+=("$further"); done
  command -v ip >/dev/null || missing+=(iproute2)
  command -v nft >/dev/null || missing+=(nftables)
  command -v unshare >/dev/null || missing+=(util-linux)
  command -v setpriv >/dev/null && command -v nsenter >/dev/null || missing+=(util-linux)
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2
  else
    echo "the tests with network namespaces need: ${missing[*]} (Debian: sudo apt-get install ${missing[*]})" >&2
    exit 2
  fi
}
