#!/bin/bash
# Facts about certificate users of a real ClickHouse server that no test of this repository can show.
# Prints PASS or FAIL per fact, and exits with the number of failures.
#
# Needs clickhouse-client, curl and openssl, a server with files/access-listener.xml of the chart in
# config.d, and an account with access management on its usual port. Give in the environment:
#   HOST         address of the server
#   NAME         a name of its certificate
#   ADMIN        arguments of clickhouse-client for the account, for example "--user a --password b"
#   SERVER_CA    file: the authority of the server's certificate
#   ACCESS_CA    directory with access-ca.crt and access-ca.key, as the listener trusts it
#   SERVICE      the service of that authority, for example svc-1
# It creates the user byoc_grant_manual and the role byoc_manual, and drops both.
set -u
: "${HOST:?}" "${NAME:?}" "${SERVER_CA:?}" "${ACCESS_CA:?}" "${SERVICE:?}"
ADMIN=${ADMIN:-}
WORK=$(mktemp -d)
USER_NAME=byoc_grant_manual
URI="spiffe://$SERVICE.byoc/grant/00000000-0000-7000-8000-000000000000"
failures=0

admin() { # shellcheck disable=SC2086  ADMIN is a list of arguments
  clickhouse-client --host "$HOST" $ADMIN --query "$1" 2>&1; }
fact() { # fact TEXT COMMAND...: PASS if the command succeeds
  local text=$1
  shift
  if "$@" >"$WORK/said" 2>&1; then echo "PASS $text"; else
    echo "FAIL $text: $(tail -n 1 "$WORK/said")"
    failures=$((failures + 1))
  fi
}
refuses() { ! "$@"; }
says() { # says PATTERN COMMAND...: the output matches, whatever the exit code
  local pattern=$1
  shift
  "$@" 2>&1 | tee "$WORK/said" | grep -qE "$pattern"
}
# ends_in_handshake COMMAND...: curl found a failed handshake, a closed connection or a reset, no answer and no
# unreachable server. With TLS 1.3 the client may see the end of the connection before the alert.
ends_in_handshake() { says '^curl: \((35|52|56)\)' "$@"; }
clean() { admin "DROP USER IF EXISTS $USER_NAME" >/dev/null; admin "DROP ROLE IF EXISTS byoc_manual" >/dev/null; rm -rf "$WORK"; }
trap clean EXIT

certificate() { # certificate NAME CA_CERT CA_KEY DAYS
  openssl ecparam -name prime256v1 -genkey -noout -out "$WORK/$1.key" 2>/dev/null
  printf 'subjectAltName=critical,URI:%s\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' "$URI" >"$WORK/ext"
  openssl req -new -key "$WORK/$1.key" -subj / -out "$WORK/$1.csr" 2>/dev/null
  openssl x509 -req -in "$WORK/$1.csr" -CA "$2" -CAkey "$3" -CAcreateserial -CAserial "$WORK/serial" \
    -days "$4" -extfile "$WORK/ext" -out "$WORK/$1.crt" 2>/dev/null
}
certificate good "$ACCESS_CA/access-ca.crt" "$ACCESS_CA/access-ca.key" 1
certificate expired "$ACCESS_CA/access-ca.crt" "$ACCESS_CA/access-ca.key" 0
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=other \
  -keyout "$WORK/other.key" -out "$WORK/other.crt" 2>/dev/null
certificate foreign "$WORK/other.crt" "$WORK/other.key" 1

https() { # https CERTIFICATE QUERY [curl options]
  local own=$1 query=$2
  shift 2
  curl -sS -m 20 -f --cacert "$SERVER_CA" --connect-to "$NAME:8444:$HOST:${PORT:-8444}" \
    --cert "$WORK/$own.crt" --key "$WORK/$own.key" -H "X-ClickHouse-User: $USER_NAME" \
    -H "X-ClickHouse-SSL-Certificate-Auth: on" "$@" --data-binary "$query" "https://$NAME:8444/"
}
usual() { PORT=8443 https "$@"; } # curl uses the first --connect-to only
native() { # native CERTIFICATE QUERY
  cat >"$WORK/client.xml" <<XML
<config><openSSL><client><certificateFile>$WORK/$1.crt</certificateFile><privateKeyFile>$WORK/$1.key</privateKeyFile>
<caConfig>$SERVER_CA</caConfig><loadDefaultCAFile>false</loadDefaultCAFile><verificationMode>strict</verificationMode></client></openSSL></config>
XML
  clickhouse-client --config-file "$WORK/client.xml" --host "$NAME" --port 9441 --secure --user "$USER_NAME" --query "$2"
}
create() { # create STORAGE SECONDS
  local until
  until=$(date -u -d "+$2 seconds" +%Y-%m-%dT%H:%M:%SZ)
  admin "DROP USER IF EXISTS $USER_NAME" >/dev/null
  [ -z "$(admin "CREATE USER $USER_NAME $1 IDENTIFIED WITH ssl_certificate SAN 'URI:$URI' VALID UNTIL '$until' HOST ANY DEFAULT ROLE byoc_manual GRANTEES NONE")" ] &&
    [ -z "$(admin "GRANT byoc_manual TO $USER_NAME")" ]
}

echo "server: $(admin 'SELECT version()')"
admin "CREATE ROLE IF NOT EXISTS byoc_manual" >/dev/null
admin "GRANT SELECT ON system.one TO byoc_manual" >/dev/null
fact "a user by the URI of a certificate can be created" create "" 600
fact "VALID UNTIL with Z is stored as that moment" test "$(admin "SELECT abs(toUnixTimestamp(arrayJoin(valid_until)) - toUnixTimestamp(now()) - 600) < 60 FROM system.users WHERE name = '$USER_NAME'")" = 1
fact "the certificate logs in over HTTPS" says '^1$' https good "SELECT 1 FROM system.one"
fact "the certificate logs in over the native protocol" says '^1$' native good "SELECT 1 FROM system.one"
fact "the role is active at login" says byoc_manual https good "SELECT currentRoles()"
for kind in expired foreign; do
  fact "a certificate that is $kind is refused over HTTPS" ends_in_handshake https "$kind" "SELECT 1"
  fact "a certificate that is $kind is refused over the native protocol" refuses native "$kind" "SELECT 1"
done
fact "no certificate: the handshake ends, before any password" ends_in_handshake curl -sS -m 20 --cacert "$SERVER_CA" --connect-to "$NAME:8444:$HOST:8444" "https://$NAME:8444/?user=default"
fact "the right certificate still logs in after these refusals" says '^1$' native good "SELECT 1 FROM system.one"
fact "the usual ports take no notice of the access authority" refuses usual good "SELECT 1"
fact "the user may read nothing else" says 'ACCESS_DENIED|497' https good "SELECT count() FROM system.query_log" --no-fail
fact "the user may read no file by the function file()" says 'ACCESS_DENIED|497' https good "SELECT length(file('byoc_access_no_such_file'))" --no-fail

create "" 8
fact "VALID UNTIL ends a live native session at its next query" says 'EXPIRED|expired' native good \
  "SELECT 1 FROM system.one; SELECT sleep(3); SELECT sleep(3); SELECT sleep(3); SELECT 2 FROM system.one"
fact "VALID UNTIL refuses the next login" refuses https good "SELECT 1"
create "" 600
{ native good "SELECT sleepEachRow(1) FROM numbers(20) SETTINGS function_sleep_max_microseconds_per_block = 60000000" >"$WORK/running" 2>&1 & }
running=$!
sleep 3
admin "DROP USER $USER_NAME" >/dev/null
fact "DROP USER refuses the next login" refuses https good "SELECT 1"
fact "a running query outlives DROP USER" kill -0 "$running"
admin "KILL QUERY WHERE user = '$USER_NAME' SYNC" >/dev/null
sleep 2
fact "KILL QUERY by the user's name ends it" refuses kill -0 "$running"
kill "$running" 2>/dev/null
fact "a user IN memory takes a role of another storage" create "IN memory" 600
fact "such a user logs in" says '^1$' https good "SELECT 1 FROM system.one"
admin "SYSTEM FLUSH LOGS" >/dev/null
fact "query_log has the user's queries" test "$(admin "SELECT count() > 0 FROM system.query_log WHERE user = '$USER_NAME'")" = 1
fact "session_log has certificate_serial" test "$(admin "SELECT count() FROM system.columns WHERE database = 'system' AND table = 'session_log' AND name = 'certificate_serial'")" = 1
echo "$failures failed"
exit "$failures"
