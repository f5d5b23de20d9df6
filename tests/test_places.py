"""Places that nodes share, as they are named in a config: refused at once where they cannot be, and without secrets."""

from pathlib import Path

import pytest

from compress.places import checked_url, hidden, public, shown
from spaces.errors import ConfigError


class TestUrl:
    def test_a_folder_is_made_and_named_for_all_processes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert checked_url("a/b") == str(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
        assert checked_url("memory://x") == "memory://x"

    def test_one_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"^cache.shared: the folder .*file/a cannot be made"):
            checked_url(str(tmp_path / "file" / "a"))

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("nosuch://anna:s3cret@host/x", r"^cache.shared: nosuch://\*\*\*@host/x cannot be opened: .*fsspec knows"),
            ("oci://s3cret@bucket/x", r"^cache.shared: oci:// needs a package .*ocifs.*on every node"),
            ("simplecache::nosuch://anna:s3cret@host/x", r"^cache.shared: simplecache::nosuch://\*\*\*@host/x cannot"),
        ],
    )
    def test_one_without_a_driver_is_refused_and_shows_no_secret(self, url: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            checked_url(url)
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("s3://bucket/folder", "s3://bucket/folder"),
            ("sftp://anna:pa@ss@host:22/x", "sftp://***@host:22/x"),
            ("https://host/x?token=abc#f", "https://host/x"),
            ("https://anna:pw@host/x?next=https://other/y", "https://***@host/x"),
            ("https://host:80/x?mail=anna@other", "https://host:80/x"),
            ("sftp://anna:p?s#s@host/x", "sftp://***@host/x"),
            ("sftp://anna:p/s?s@host/x", "sftp://***@host/x"),
            ("https://anna:p::w@host/x", "https://***@host/x"),
            ("simplecache::https://anna:pw@host/x?key=a&token=b", "simplecache::https://***@host/x"),
            ("filecache::zip://a.zip::https://anna:pw@host/x?a=1", "filecache::zip://a.zip::https://***@host/x"),
            ("ftp://anna:pw@one/a.zip::sftp://bob:pw2@two/x", "ftp://***@one/a.zip::sftp://***@two/x"),
            ("simplecache::s3://bucket/folder", "simplecache::s3://bucket/folder"),
            ("/mnt/shared@home", "/mnt/shared@home"),
        ],
    )
    def test_it_is_shown_without_secrets(self, url: str, words: str) -> None:
        assert shown(url) == words

    def test_messages_of_drivers_lose_them(self) -> None:
        url = "sftp://anna:s3cret@host/x?key=v4lue&other=0ther"
        text = f"cannot open {url}: anna / s3cret / v4lue / 0ther"
        assert hidden(text, url) == "cannot open sftp://***@host/x: *** / *** / *** / ***"

    @pytest.mark.parametrize(
        "url",
        [
            "https://anna:s3cret@host/x?next=https://other/y&key=v4lue#fr4gment",
            "simplecache::https://anna:s3cret@host/x?v4lue",
            "zip://anna:s3cret@a.zip::https://host/x?key=v4lue;token=0ther",
        ],
    )
    def test_no_part_of_a_chain_is_forgotten(self, url: str) -> None:
        text = f"{url}; {url.partition('::')[2] or url}: key s3cret v4lue 0ther"
        left = hidden(text, url)
        assert public(url) is None
        assert not [one for one in ("s3cret", "v4lue", "fr4gment") if one in left and one in url]

    def test_what_a_driver_decoded_is_hidden_too(self) -> None:
        assert hidden("no entry for p@ss w", "sftp://anna:p%40ss%20w@host/x") == "no entry for ***"

    def test_only_one_without_secrets_is_public(self) -> None:
        assert public(None) is None
        assert public("sftp://anna:s3cret@host/x") is None
        assert public("https://host/x?token=abc") is None
        for url in ("s3://bucket/x", "/mnt/shared"):
            assert public(url) == url
