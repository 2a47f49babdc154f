#!/usr/bin/env bash
# Debian's packages that the private services need: PostgreSQL's binaries, Java 17 or newer, Maven.
# Nothing happens where they are there. No cluster of the system's is made and no server of its started.
set -euo pipefail

have_postgresql() { compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null || command -v initdb > /dev/null; }

have_java() {
    local java="${JAVA_HOME:-}/bin/java"
    [[ -x $java ]] || java=java
    [[ "$("$java" -version 2>&1)" =~ version\ \"([0-9]+) ]] && ((BASH_REMATCH[1] >= 17))
}

missing=()
have_postgresql || missing+=(postgresql)
command -v openssl > /dev/null || missing+=(openssl)
have_java || missing+=(java)
command -v mvn > /dev/null || missing+=(maven)
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

# Installing the server would make a cluster and start it; Debian reads this folder before it does.
if [[ " ${packages[*]} " == *" postgresql "* ]]; then
    no_cluster=/etc/postgresql-common/createcluster.d/apflow.conf
    trap '"${as_root[@]}" rm -f "$no_cluster"' EXIT
    "${as_root[@]}" mkdir -p "$(dirname "$no_cluster")"
    echo "create_main_cluster = false" | "${as_root[@]}" tee "$no_cluster" > /dev/null
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
