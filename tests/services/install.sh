#!/bin/bash
# Install the packages of the services named (slurm, accounting, ssh), where that works: as root on Debian or Ubuntu.
# Nothing of them is started. With --missing, only say what is not there. With CI=true what is missing is a failure.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
declare -A packages=([slurm]='slurm-wlm' [accounting]='slurmdbd mariadb-server' [ssh]='openssh-server openssh-client tcsh fish')
declare -A commands=([slurm]='slurmctld slurmd sbatch' [accounting]='slurmdbd mariadbd' [ssh]='sshd ssh ssh-keygen tcsh fish')
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing() {
  local service command
  for service in "$@"; do
    for command in ${commands[$service]}; do
      command -v "$command" >/dev/null || { echo "$service"; break; }
    done
  done
}

install() {
  local policy=/usr/sbin/policy-rc.d made=''
  if [ ! -e $policy ]; then # packages must not start their services
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made=yes
  fi
  # shellcheck disable=SC2064
  [ -z "$made" ] || trap "rm -f $policy" EXIT
  echo "Installing: $*"
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if [ "${1-}" = --missing ]; then
  shift
  lacking=$(missing "$@")
  [ -z "$lacking" ] && exit 0
  for service in $lacking; do
    echo "NOT EXERCISED: $service. To have it: sudo apt-get install ${packages[$service]}" | tr '[:lower:]' '[:upper:]' |
      sed "s/TO HAVE IT: .*/To have it: sudo apt-get install --no-install-recommends ${packages[$service]}/"
  done
  [ "${CI-}" != true ]
  exit
fi

lacking=$(missing "$@")
[ -n "$lacking" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  wanted=''
  for service in $lacking; do wanted+=" ${packages[$service]}"; done
  # shellcheck disable=SC2086
  install $wanted
fi
