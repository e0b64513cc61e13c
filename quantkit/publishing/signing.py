"""Signatures over a repository's files with Sigstore's model-signing: a key, no network.

The signature is model-signing's own format (a Sigstore bundle around an in-toto statement), so its
command line checks it too. It is made of the sums that are known already, not of the files, and it
covers what ``SHA256SUMS`` covers, and that file.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import PublishError, VerificationError
from quantkit.core.files import read_file
from quantkit.core.packages import require
from quantkit.core.writing import write_file
from quantkit.publishing.layout import CARD, PICTURE, SIGNATURE

if TYPE_CHECKING:
    from model_signing.manifest import Manifest

# What is not signed: the card and its picture, which may change, and what clients leave in folders.
_UNSIGNED = [CARD, PICTURE, SIGNATURE, ".gitattributes", ".git", ".cache"]


def check_key(key: Path) -> None:
    """Check that a file can be signed with.

    Raises:
        MissingPackageError: model-signing is not installed.
        PublishError: it is not a private key on a curve that Sigstore knows, or needs a password.

    """
    require("model_signing", "model-signing", "sign", "Signing")
    from model_signing.signing import Config

    try:
        Config().use_elliptic_key_signer(private_key=key)
    except OSError as error:
        raise PublishError(f"{key} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError):
        raise PublishError(
            f"{key} is not a private key to sign with: that is a PEM file with an elliptic curve "
            "key (NIST P-256, P-384 or P-521) and without a password."
        ) from None


def sign(name: str, sums: Mapping[str, str], key: Path) -> bytes:
    """The signature of files.

    Args:
        name: of what is signed.
        sums: sha256 in hex by path.
        key: a private key, see `check_key`.

    """
    from model_signing import manifest
    from model_signing.signing import Config

    kind = manifest.SerializationType.from_args(
        {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": _UNSIGNED,
        }
    )
    items = [kind.new_item(path, _Digest(bytes.fromhex(sums[path]))) for path in sorted(sums)]
    known = _Known(manifest.Manifest(name, items, kind))
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / SIGNATURE
        signer = Config().use_elliptic_key_signer(private_key=key).set_hashing_config(known)
        signer.sign(folder, file)
        return read_file(file)


@dataclass(frozen=True, slots=True)
class _Digest:
    """A sum as model-signing has it."""

    digest_value: bytes
    algorithm: str = "sha256"

    @property
    def digest_hex(self) -> str:
        return self.digest_value.hex()


@dataclass(frozen=True, slots=True)
class _Known:
    """Stands for model-signing's way to hash files: their sums are known."""

    sums: "Manifest"

    def hash(self, _path: object, *, files_to_hash: object = None) -> "Manifest":  # noqa: ARG002
        return self.sums


class _Signed:
    """Stands for the files of a signature, and takes whatever it says of them, once it is sound."""

    sums: dict[str, str]

    def add_ignored_paths(self, **_: object) -> None:
        """Nothing is read, so nothing is left out."""

    def hash(self, _path: object, *, files_to_hash: object = None) -> "_Signed":  # noqa: ARG002
        return self

    def __eq__(self, signed: Any) -> bool:
        self.sums = {d.identifier: d.digest.digest_hex for d in signed.resource_descriptors()}
        return True

    __hash__ = None  # type: ignore[assignment]


def signed_sums(signature: bytes, key: Path) -> dict[str, str]:
    """What a signature covers, sha256 in hex by path, once it has proven to be of this key.

    Raises:
        MissingPackageError: model-signing is not installed.
        PublishError: the key cannot be read or is none.
        VerificationError: the signature is not of this key, or is damaged.

    """
    require("model_signing", "model-signing", "sign", "Checking a signature")
    from cryptography.exceptions import InvalidSignature
    from model_signing.verifying import Config

    signed = _Signed()
    try:
        verifier = Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(signed)
    except OSError as error:
        raise PublishError(f"{key} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError):
        raise PublishError(
            f"{key} is not a public key of an elliptic curve in a PEM file."
        ) from None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / SIGNATURE
        write_file(file, signature)
        try:
            verifier.verify(folder, file)
        except InvalidSignature:
            raise VerificationError(
                f"The signature is not what {key.name} would have made; do not trust these files."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise VerificationError(
                f"The signature was made with another key than {key.name}, or is damaged; do not "
                "trust these files, or get the right key."
            ) from None
    return signed.sums
