#!/usr/bin/env bash
# Prints a Python of 3.12 or newer that can make environments: $PYTHON, the PATH, pyenv, then uv. 3.13 is preferred.
set -u
fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
take() { if [ -n "$1" ] && fits "$1"; then echo "$1"; exit 0; fi; }

if [ -n "${PYTHON:-}" ]; then
  take "$PYTHON"
  echo "apflow: PYTHON=$PYTHON is not Python 3.12 to 3.14 with venv" >&2; exit 1
fi
pyenv_root="${PYENV_ROOT:-$HOME/.pyenv}"
for version in 3.13 3.12 3.14; do
  take "$(command -v "python$version" || true)"
  for found in $(ls -d "$pyenv_root/versions/$version".*/bin/python 2>/dev/null | sort -rV); do take "$found"; done
  if command -v uv >/dev/null; then take "$(uv python find --no-project "$version" 2>/dev/null || true)"; fi
done
take "$(command -v python3 || true)"
if command -v uv >/dev/null && uv python install 3.13 >&2; then take "$(uv python find --no-project 3.13)"; fi
cat >&2 <<'EOT'
apflow: no Python of 3.12 to 3.14 with venv was found on the PATH, in pyenv or by uv. One of these installs it:
    apt-get install python3.13 python3.13-venv      (Debian 13, Ubuntu 24.10 and newer)
    pyenv install 3.13
    uv python install 3.13
or name one yourself:  make setup PYTHON=/path/to/python3.13
EOT
exit 1
