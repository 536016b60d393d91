"""Checksums and hash shares are fixed."""

import hashlib

from lwr.common.hashing import hash_share, sha256


def test_sha256_is_the_digest_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_hash_share_has_a_fixed_value():
    assert hash_share("a") == int("ca978112ca1b", 16) / 2**48


def test_hash_shares_are_spread_evenly():
    shares = [hash_share(str(i)) for i in range(2000)]
    assert abs(sum(share < 0.3 for share in shares) / 2000 - 0.3) < 0.03
