#!/bin/sh
# Make keys, certificates and repositories where they are missing, and start everything anew.
set -eu
# shellcheck source=/dev/null
. /etc/moat-lab/internet/settings
# shellcheck source=/dev/null
. "$PLACE/repository.sh"
trust=$SERVED/trust www=$SERVED/www
chmod 755 "$PLACE/addresses"
mkdir -p "$trust" /var/log/moat-lab-internet
cd "$PLACE"

if [ ! -s ca.key ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=lab internet" \
    -addext "keyUsage=critical,keyCertSign" -keyout ca.key.new -out "$trust/ca.pem" 2>/dev/null
  mv ca.key.new ca.key
fi
alternatives=
for name in $NAMES; do alternatives="$alternatives,DNS:$name"; done
for address in $ADDRESSES; do alternatives="$alternatives,IP:$address"; done
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=web" -keyout web.key -out web.csr 2>/dev/null
printf 'subjectAltName=%s\n' "${alternatives#,}" > web.ext
openssl x509 -req -in web.csr -CA "$trust/ca.pem" -CAkey ca.key -days 3650 -extfile web.ext -out "$trust/web.pem" 2>/dev/null

export GNUPGHOME="$PLACE/gnupg"
if [ ! -s "$trust/packages.asc" ]; then
  new_key "lab packages" "$trust/packages.asc"
fi
folder=$(mktemp -d)
mkdir -p "$folder/DEBIAN" "$folder/usr/share/$PACKAGE" "$www/debian/pool"
echo "hello" > "$folder/usr/share/$PACKAGE/hello"
cat > "$folder/DEBIAN/control" <<END
Package: $PACKAGE
Version: $VERSION
Architecture: all
Maintainer: lab <lab@example.org>
Description: a package that only says hello
END
chmod 755 "$folder"
new_package "$folder" "$www/debian/pool/${PACKAGE}_${VERSION}_all.deb"
rm -rf "$folder"
cp /opt/moat/debs/*.deb "$www/debian/pool/"
cd "$www/debian"
release=dists/$SUITE
mkdir -p "$release/main/binary-amd64"
apt-ftparchive packages pool > "$release/main/binary-amd64/Packages"
sign_release "$release" -o APT::FTPArchive::Release::Suite="$SUITE" -o APT::FTPArchive::Release::Codename="$SUITE" \
  -o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64
gpgconf --kill all

systemctl daemon-reload
systemctl enable --quiet moat-lab-internet.target
cd /etc/systemd/system
systemctl restart moat-lab-internet-*.service
systemctl start moat-lab-internet.target
