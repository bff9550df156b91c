"""A maker's signature on a bundle, by an ed25519 key: of its SHA256SUMS, which name every other file."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from pipeline.ground.errors import SettingsError

FILE = "SHA256SUMS.sig"


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in a file, as OpenSSL (PEM) or ssh-keygen write it, without a passphrase.

    Raises:
        SettingsError: if there is none.
    """
    takes = "takes a file with an ed25519 private key that has no passphrase (ssh-keygen -t ed25519 -N '' -f FILE)"
    try:
        content = path.read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in content.partition(b"\n")[0] else load_pem_private_key
        key = load(content, password=None)
    except OSError as error:
        raise SettingsError([f"deploy.sign_key: got {path}, but {error.strerror}; {takes}"]) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError([f"deploy.sign_key: got {path}, {takes}"]) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError([f"deploy.sign_key: got {path}, a key of another kind; {takes}"])
    return key
