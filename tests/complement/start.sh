#!/usr/bin/env bash
# The first process of a Homing server under Complement: what an image's entry point would be.
#
# Complement names the server in SERVER_NAME and mounts its certificate authority, and the registrations of
# application services, below /complement; `run.sh` hands over where the program is. Started again on the same
# disk, the server goes on with its data.
set -euo pipefail

mkdir -p /data
cd /data

ca=/complement/ca
certificate() {
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$SERVER_NAME" \
        -keyout tls.key -out tls.csr
    openssl x509 -req -in tls.csr -CA "$ca/ca.crt" -CAkey "$ca/ca.key" -CAcreateserial -CAserial ca.srl \
        -days 2 -extfile <(echo "subjectAltName = DNS:$SERVER_NAME") -out tls.crt
}
certificate 2>openssl.log || { cat openssl.log >&2; exit 1; }

# The registrations are YAML as Complement writes it: `name: value` lines, and everybody as their user.
value() {
    sed -n "s/^$2: *'\{0,1\}\([^']*\)'\{0,1\}$/\1/p" "$1" | head -n 1
}

application_services() {
    local file
    for file in /complement/appservice/*.yaml; do
        [ -e "$file" ] || continue
        cat <<-TOML

	[[application_services]]
	id = "$(value "$file" id)"
	token = "$(value "$file" as_token)"
	sender_localpart = "$(value "$file" sender_localpart)"
	users = [".*"]
	exclusive = false
	TOML
    done
}

# The suite expects rooms of version 11 where it asks for none, and its own servers have private addresses.
# It also expects that devices are called what people call them on other servers too.
cat >homing.toml <<TOML
server_name = "$SERVER_NAME"
data_dir = "/data/homing"

[[listeners]]
bind = "0.0.0.0:8008"

[[listeners]]
bind = "0.0.0.0:8448"
tls = true
cert = "/data/tls.crt"
key = "/data/tls.key"

[registration]
mode = "open"
shared_secret = "complement"
guests = true

[rate_limits]
enabled = false

[media]
unauthenticated = true

[url_previews]
enabled = true
allow_addresses = ["0.0.0.0/0", "::/0"]

[rooms]
default_version = "11"

[federation]
device_names = true
allow_addresses = ["0.0.0.0/0", "::/0"]
ca_file = "$ca/ca.crt"

[logging]
filter = "${LOG_FILTER:-info,ruma_state_res=warn}"
$(application_services)
TOML

exec "$HOMING" serve --config homing.toml
