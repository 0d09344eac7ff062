#!/usr/bin/env bash
# faults.sh: lets every fault befall real processes, with hold and without, and WIREVIP_FAULT_PAIRS random pairs of faults
# from WIREVIP_FAULT_SEED (random if not given).
. "$(dirname "$0")/lib.sh"

lab/setup/packages.sh test
need_namespaces
lab/setup/rust.sh
export WIREVIP_FAULT_PAIRS=${WIREVIP_FAULT_PAIRS:-200}
matrix() { namespaces cargo test --locked --test scenarios -- --ignored --nocapture "$@"; }
status=0
matrix faults:: --skip api::faults || status=1
WIREVIP_FAULT_HOLD=false matrix faults:: --skip api::faults --skip random_pairs || status=1
exit $status
