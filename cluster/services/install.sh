#!/usr/bin/env bash
# Debian's packages that the private services need: PostgreSQL's binaries, Java 17 or newer, Maven, InfluxDB, SLURM and
# munge; and Chromium, in which the tests open the dashboard.
# Nothing happens where they are there. No cluster of the system's is made and no server of its started.
set -euo pipefail

have_postgresql() { compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null || command -v initdb > /dev/null; }

have_java() {
    local java="${JAVA_HOME:-}/bin/java"
    [[ -x $java ]] || java=java
    [[ "$("$java" -version 2>&1)" =~ version\ \"([0-9]+) ]] && ((BASH_REMATCH[1] >= 17))
}

# The daemons are in /usr/sbin, which is not on every user's PATH.
have_slurm() {
    local program
    for program in slurmctld slurmd munged sbatch; do
        PATH=$PATH:/usr/sbin command -v $program > /dev/null || return 1
    done
}

missing=()
have_postgresql || missing+=(postgresql)
command -v openssl > /dev/null || missing+=(openssl)
have_java || missing+=(java)
command -v mvn > /dev/null || missing+=(maven)
command -v influxd > /dev/null || missing+=(influxdb)
have_slurm || missing+=(slurmctld slurmd slurm-client munge)
command -v chromium > /dev/null || missing+=(chromium)
((${#missing[@]})) || exit 0

if ! command -v apt-get > /dev/null; then
    echo "apflow: missing: ${missing[*]}; without apt-get they have to be installed by hand" >&2
    exit 1
fi
echo "apflow: installing ${missing[*]}"
as_root=()
((EUID == 0)) || as_root=(sudo)

"${as_root[@]}" apt-get update -q

packages=()
for name in "${missing[@]}"; do
    if [[ $name == java ]]; then
        # Later releases of Debian have only later versions.
        name=openjdk-17-jre-headless
        [[ "$(apt-cache policy $name)" == *"Candidate: "[0-9]* ]] || name=default-jre-headless
    fi
    packages+=("$name")
done

temporary=()
trap '((${#temporary[@]} == 0)) || "${as_root[@]}" rm -f "${temporary[@]}"' EXIT

# Installing the server would make a cluster and start it; Debian reads this folder before it does.
if [[ " ${packages[*]} " == *" postgresql "* ]]; then
    no_cluster=/etc/postgresql-common/createcluster.d/apflow.conf
    temporary+=("$no_cluster")
    "${as_root[@]}" mkdir -p "$(dirname "$no_cluster")"
    echo "create_main_cluster = false" | "${as_root[@]}" tee "$no_cluster" > /dev/null
fi

# Installing munge or InfluxDB would start it; 101 is "not allowed" to invoke-rc.d and deb-systemd-invoke. Another's policy stays.
no_start=/usr/sbin/policy-rc.d
if [[ ! -e $no_start ]]; then
    temporary+=("$no_start")
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$no_start" > /dev/null
    "${as_root[@]}" chmod 755 "$no_start"
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
