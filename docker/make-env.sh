#!/bin/sh
# Writes .env: .env.example with a random password in each *_PASSWORD.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo ".env is there already and stays as it is." >&2
  exit 1
fi
umask 077
while IFS= read -r line; do
  case $line in
    *_PASSWORD=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
    *) echo "$line" ;;
  esac
done <.env.example >.env.part
mv .env.part .env
