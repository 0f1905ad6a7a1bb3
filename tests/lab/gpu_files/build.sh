#!/bin/sh
# Build the stand-ins and serve them as repositories: the vendor's, one with another key, one with a package that is not what its index says, and two
# that lack a package; and the package that carries a repository with it.
set -eu
# shellcheck source=/dev/null
. /etc/gpu-repository/settings
# shellcheck source=/dev/null
. /etc/gpu-repository/repository.sh
here=/etc/gpu-repository
mkdir -p "$SERVED/vendor" "$SERVED/keys"

find "$BUILD" -name '*.ko.c' | while read -r source; do gcc -c -o "${source%.c}" "$source"; done
find "$BUILD" -name '*.so.*.c' | while read -r source; do
  soname=$(basename "$source" | sed 's/\.so\..*/.so.1/')
  gcc -shared -fPIC -Wl,-soname,"$soname" -o "${source%.c}" "$source"
done
find "$BUILD" -name '*.c' -delete
find "$BUILD" -name '*.link' | while read -r link; do
  ln -s "$(cat "$link")" "${link%.link}"
  rm "$link"
done
find "$BUILD" -mindepth 1 -maxdepth 1 -type d | while read -r folder; do
  chmod -R go-w "$folder"
  architecture=$(sed -n 's/^Architecture: //p' "$folder/DEBIAN/control")
  new_package "$folder" "$SERVED/vendor/$(basename "$folder")_$architecture.deb"
done
rm -rf "$BUILD"

# index FOLDER KEY: write the index of a flat repository, as the vendor's are, and sign it
index() {
  (cd "$1" && apt-ftparchive packages . > Packages && gzip -kf Packages)
  signed "$@"
}
signed() {
  GNUPGHOME=$here/$2
  export GNUPGHOME
  sign_release "$1" -o APT::FTPArchive::Release::Origin=NVIDIA -o "APT::FTPArchive::Release::Label=NVIDIA CUDA" \
    -o APT::FTPArchive::Release::Architectures=amd64
  gpgconf --kill all
}

for key in vendor stranger; do
  GNUPGHOME=$here/$key
  export GNUPGHOME
  new_key "lab stand-in for a vendor, $key" "$SERVED/keys/$key.asc" rsa3072
  gpg --batch --with-colons --fingerprint | sed -n 's/^fpr:*\([0-9A-F]*\):.*/\1/p' | head -n 1 > "$SERVED/keys/$key.fingerprint"
  gpgconf --kill all
done
index "$SERVED/vendor" vendor
for name in stranger tampered missing fabricless; do
  mkdir "$SERVED/$name"
  ln "$SERVED/vendor"/*.deb "$SERVED/vendor"/Packages* "$SERVED/$name/"
done
signed "$SERVED/stranger" stranger
signed "$SERVED/tampered" vendor
# as many bytes as before, so that only the hash can tell
other=$SERVED/tampered/${TAMPERED}_amd64.deb
cp "$other" "$other.new"
printf 'x' | dd of="$other.new" bs=1 seek=$(($(stat -c %s "$other") - 20)) conv=notrunc status=none
mv "$other.new" "$other"
rm "$SERVED/missing/${MISSING}_amd64.deb" "$SERVED/fabricless/${FABRIC}_amd64.deb"
for name in missing fabricless; do
  rm "$SERVED/$name"/Packages*
  index "$SERVED/$name" vendor
done

# the repository as a package, as the vendor names its own
name=nvidia-driver-local-repo-debian12-$LOCAL
folder=$(mktemp -d)
mkdir -p "$folder/DEBIAN" "$folder/var/$name" "$folder/etc/apt/sources.list.d" "$folder/usr/share/keyrings"
cp "$SERVED/vendor"/*_"$LOCAL"-1_*.deb "$SERVED/vendor"/dkms_*.deb "$folder/var/$name/"
index "$folder/var/$name" vendor
GNUPGHOME=$here/vendor gpg --batch --export > "$folder/usr/share/keyrings/$name-keyring.gpg"
cp "$folder/usr/share/keyrings/$name-keyring.gpg" "$folder/var/$name/$name-keyring.gpg"
echo "deb [signed-by=/usr/share/keyrings/$name-keyring.gpg] file:///var/$name /" > "$folder/etc/apt/sources.list.d/$name.list"
cat > "$folder/DEBIAN/control" << END
Package: $name
Version: 1.0-1
Architecture: amd64
Maintainer: lab <lab@example.org>
Description: stand-in of the lab for the vendor's local repository
END
chmod 755 "$folder"
new_package "$folder" "$SERVED/$name.deb"
rm -rf "$folder"
sha256sum "$SERVED/$name.deb" | cut -d ' ' -f 1 > "$SERVED/keys/local.sha256"
cp "$SERVED/$name.deb" "$SERVED/local.deb"
