# shellcheck shell=sh
# Functions for whoever makes a signed repository of packages; GNUPGHOME is where its key is or will be.

# new_key NAME FILE [ALGORITHM]: make a key without a passphrase, and write its public half
new_key() {
  mkdir -p "$GNUPGHOME"
  chmod 700 "$GNUPGHOME"
  gpg --batch --quiet --passphrase '' --quick-generate-key "$1" "${3:-ed25519}" sign never
  gpg --batch --armor --export > "$2"
}

# new_package FOLDER FILE: what is below the folder, as a package
new_package() {
  dpkg-deb --build --root-owner-group "$1" "$2" > /dev/null
}

# sign_release FOLDER [OPTION...]: write Release for what is below the folder, and InRelease; options are those of apt-ftparchive
sign_release() (
  folder=$1
  shift
  apt-ftparchive "$@" release "$folder" > "$folder.new"
  mv "$folder.new" "$folder/Release"
  gpg --batch --yes --quiet --clearsign -o "$folder/InRelease" "$folder/Release"
)
