"""Signatures over a repository's files with Sigstore's model-signing: a key, no network.

The signature is model-signing's own format (a Sigstore bundle around an in-toto statement), so its
command line checks it too. It is made of the sums that are known already, not of the files, and it
covers what ``SHA256SUMS`` covers, and that file.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from quantkit.core.errors import PublishError, VerificationError
from quantkit.core.files import read_file
from quantkit.core.packages import require
from quantkit.core.writing import write_file
from quantkit.publish.layout import CARD, PICTURE, SIGNATURE

# What is not signed: the card and its picture, which may change, and what clients leave in folders.
_UNSIGNED = [CARD, PICTURE, SIGNATURE, ".gitattributes", ".git", ".cache"]


def check_key(key: Path) -> None:
    """Check that a file can be signed with.

    Raises:
        MissingPackageError: model-signing is not installed.
        PublishError: it is no private key on a curve that Sigstore knows, or needs a password.

    """
    require("model_signing", "model-signing", "sign", "Signing")
    from model_signing._signing.sign_ec_key import Signer

    try:
        Signer(key)
    except OSError as error:
        raise PublishError(f"{key} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError):
        raise PublishError(
            f"{key} is no private key to sign with: that is a PEM file with an elliptic curve key "
            "(NIST P-256, P-384 or P-521) and without a password."
        ) from None


def sign(name: str, sums: Mapping[str, str], key: Path) -> bytes:
    """The signature of files.

    Args:
        name: of what is signed.
        sums: sha256 in hex by path.
        key: a private key, see `check_key`.

    """
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.sign_ec_key import Signer
    from model_signing._signing.signing import Payload

    kind = manifest.SerializationType.from_args(
        {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": _UNSIGNED,
        }
    )
    items = [
        kind.new_item(path, Digest("sha256", bytes.fromhex(sums[path]))) for path in sorted(sums)
    ]
    payload = Payload(manifest.Manifest(name, items, kind))
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / SIGNATURE
        Signer(key).sign(payload).write(file)
        return read_file(file)


def signed_sums(signature: bytes, key: Path) -> dict[str, str]:
    """What a signature covers, sha256 in hex by path, once it has proven to be of this key.

    Raises:
        MissingPackageError: model-signing is not installed.
        PublishError: the key cannot be read or is none.
        VerificationError: the signature is not of this key, or is damaged.

    """
    require("model_signing", "model-signing", "sign", "Checking a signature")
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing.sign_ec_key import Verifier
    from model_signing._signing.sign_sigstore_pb import Signature

    try:
        verifier = Verifier(key)
    except OSError as error:
        raise PublishError(f"{key} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError):
        raise PublishError(f"{key} is no public key of an elliptic curve in a PEM file.") from None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / SIGNATURE
        write_file(file, signature)
        try:
            found = verifier.verify(Signature.read(file))
        except InvalidSignature:
            raise VerificationError(
                f"The signature is not what {key.name} would have made; do not trust these files."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise VerificationError(
                f"The signature was made with another key than {key.name}, or is damaged; do not "
                "trust these files, or get the right key."
            ) from None
    return {d.identifier: d.digest.digest_hex for d in found.resource_descriptors()}
