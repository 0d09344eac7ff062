# Sourced by the scripts beside it: words and small tools that all of them share. Expects bash.
# Nothing here asks a question: every script must run unattended on a new machine.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tools=$top/target/tools/bin
cd "$top"

export DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
PATH=$tools:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin
export PATH
# `make` hands its own flags and job server down; cargo would take them for its own.
unset MAKEFLAGS MFLAGS MAKELEVEL

say() { printf '\n== %s\n' "$*" >&2; }
note() { printf '   %s\n' "$*" >&2; }
fail() { printf '\n!! %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Runs a command as root; fails where that is not possible without a password.
as_root() {
  if is_root; then "$@"; elif have sudo && sudo -n true 2>/dev/null; then sudo -n --preserve-env=DEBIAN_FRONTEND "$@"; else return 1; fi
}

# version_at_least 1.95 "$(rustc --version)": is the first version number in the text that new?
version_at_least() {
  local found
  found=$(grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' <<<"$2" | head -n 1) || return 1
  [ "$(printf '%s\n%s\n' "$1" "$found" | sort -V | head -n 1)" = "$1" ]
}

# namespaces COMMAND …: runs it where network namespaces may be made: as root, else as root of a user namespace, else by
# sudo that asks for no password. Exit 125, with nothing run and nothing said, where none is possible.
namespaces() {
  if is_root && unshare --net true 2>/dev/null; then
    "$@"
  elif ! is_root && unshare --map-root-user --net --mount ip link set lo up 2>/dev/null; then
    # Some distributions let users make such a namespace and then do nothing in it, so the probe does something.
    unshare --map-root-user --net --mount "$@"
  elif ! is_root && have sudo && sudo -n unshare --net true 2>/dev/null; then
    local status=0
    sudo -n --preserve-env env "PATH=$PATH" "HOME=$HOME" "$@" || status=$?
    # What root made in it must not be in the user's way next time.
    sudo -n chown -R --from=0:0 "$(id -u):$(id -g)" "${CARGO_TARGET_DIR:-target}" || true
    return $status
  else
    return 125
  fi
}

# Before anything is built in vain.
need_namespaces() {
  namespaces true || fail "no network namespaces can be made here: run it as root (sudo make …), or let sudo ask for no password.
   On Ubuntu 24.04 users may make them after: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
   A container needs the capabilities NET_ADMIN and SYS_ADMIN for it"
}

# Go is never installed here, only used where it stands: see the README.
have_go() { have go && version_at_least 1.26 "$(go version)"; }

# Tells, at the end, what took how long: `timed NAME COMMAND …`.
timings=()
timed() {
  local name=$1 start=$SECONDS status=0
  shift
  "$@" || status=$?
  timings+=("$(printf '%4d s  %s%s' $((SECONDS - start)) "$name" "$([ $status = 0 ] || echo '  FAILED')")")
  return $status
}
