"""A model's repository on the Hub, with the errors of the Hub's client in one line with the remedy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from modeling_sit.hub.provenance import stored_token
from modeling_sit.runtime.errors import SiTError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# Client errors that the next try may not have: timeouts, conflicts, rate limits.
PASSING_STATUSES = (408, 409, 412, 423, 425, 429)
TEXT_ENDINGS = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml")
MAX_MESSAGE_LENGTH = 300
# The client itself waits without a limit.
SECONDS_TO_ANSWER, SECONDS_TO_COMMIT = 20.0, 120.0


class HubUnreachable(Exception):
    """The Hub did not answer or failed, and may work later. The message says why, in one line."""


class HubRepository:
    """
    The repository that a model is pushed to.

    Args:
        name (`str`): `NAME` or `NAMESPACE/NAME`. The default namespace is the user's.
        private (`bool`, *optional*, defaults to `False`): Whether it has to be private. If not, the Hub decides.

    Raises:
        [`SiTError`]: If the name is not valid.
    """

    def __init__(self, name: str, private: bool = False):
        try:
            validate_repo_id(name)
        except HFValidationError as problem:
            raise SiTError(
                f"{name!r} is no name for a repository",
                argument="hub_model_id",
                remedy="give NAME or NAMESPACE/NAME, of letters, digits, and single -, _ or . between them",
            ) from problem
        self.name, self.private = name, private
        self.is_ready = False

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.name}"

    def check_login(self) -> None:
        """Ask the Hub for the user of the token, and put the user's name in front of the repository's.

        Raises:
            [`SiTError`]: If there is no token, or it does not allow to write.
            [`HubUnreachable`]: If the Hub does not answer.
        """
        if stored_token() is None:
            raise SiTError("you are not logged in to the Hub", remedy=LOG_IN)
        with self._one_line_errors(SECONDS_TO_ANSWER):
            user = HfApi(token=True).whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise SiTError("your Hub token is for reading only", remedy=f"{LOG_IN} to a token that may write")
        if "/" not in self.name:
            self.name = f"{user['name']}/{self.name}"

    def create(self) -> None:
        """Create the repository, if it is not there, and check that the user may write to it.

        Raises:
            [`SiTError`]: If the user may not, or it is public and has to be private.
            [`HubUnreachable`]: If the Hub does not answer, or fails.
        """
        hub = HfApi(token=True)
        with self._one_line_errors(SECONDS_TO_ANSWER):
            hub.create_repo(self.name, private=self.private or None, exist_ok=True)
            hub.auth_check(self.name, write=True)
            is_private = hub.model_info(self.name, expand=["private"], timeout=SECONDS_TO_ANSWER).private
        if self.private and not is_private:
            raise SiTError(
                f"{self.url} exists and is public",
                argument="hub_private_repo",
                remedy="make it private in its settings, or give another `hub_model_id`",
            )
        self.is_ready = True

    def commit(self, files: Mapping[str, Path], message: str, replaced_folders: tuple[str, ...] = ()) -> None:
        """Write files to the repository, all or none of them. Files that are there already are not sent again.

        Args:
            files (mapping from `str` to `Path`): Each file by its path in the repository.
            message (`str`): The commit's.
            replaced_folders (`tuple` of `str`, *optional*): Folders of the repository whose other files are deleted.

        Raises:
            [`SiTError`]: If the user may not write, or a file holds the user's token.
            [`HubUnreachable`]: If the Hub does not answer, or fails.
        """
        check_for_token(files)
        if not self.is_ready:
            self.check_login()
            self.create()
        hub = HfApi(token=True)
        with self._one_line_errors(SECONDS_TO_COMMIT):
            operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
            if replaced_folders:
                for name in hub.list_repo_files(self.name):
                    if name.partition("/")[0] in replaced_folders and name not in files:
                        operations.append(CommitOperationDelete(name, is_folder=False))
            hub.create_commit(self.name, operations, commit_message=message)

    @contextmanager
    def _one_line_errors(self, seconds: float) -> Iterator[None]:
        """Turn what the client raises, or a Hub that does not answer for so many seconds, into one of two errors:
        [`SiTError`] for a mistake of the user, [`HubUnreachable`] for what may work later."""
        client = get_session()  # of the whole process
        usual, client.timeout = client.timeout, seconds
        try:
            yield
        except Exception as problem:  # of the client, of HTTP, of the upload: their types are not documented
            error = _explain(problem, self.name, self.url)
            raise error from problem
        finally:
            client.timeout = usual


def check_for_token(files: Mapping[str, Path]) -> None:
    """Raise [`SiTError`] if one of the texts that would be published holds the user's token."""
    token = stored_token()
    for file in files.values():
        if token and file.suffix in TEXT_ENDINGS and token in file.read_text(encoding="utf-8", errors="replace"):
            raise SiTError(
                f"{file} holds your Hub token, and was not pushed",
                remedy="take the token out, and replace it by a new one",
            )


def _explain(problem: BaseException, name: str, url: str) -> SiTError | HubUnreachable:
    """The error for a mistake of the user, or for what may work later.

    Texts of HTTP errors are not used: they hold addresses, also signed ones.
    """
    if isinstance(problem, OfflineModeIsEnabled):
        return SiTError("the Hub cannot be reached while HF_HUB_OFFLINE is set", remedy="unset it")
    if isinstance(problem, LocalTokenNotFoundError):
        return SiTError("you are not logged in to the Hub", remedy=LOG_IN)
    answer = next((cause for cause in _causes(problem) if isinstance(cause, HfHubHTTPError)), None)
    if answer is None:
        cause = list(_causes(problem))[-1]
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:MAX_MESSAGE_LENGTH]
        return HubUnreachable(
            _without_token(f"no answer from the Hub at {constants.ENDPOINT} ({type(cause).__name__}: {reason})")
        )
    status = answer.response.status_code
    said = " ".join((answer.server_message or "").split())[:MAX_MESSAGE_LENGTH]
    said = _without_token(f" (it says: {said})") if said else ""
    if isinstance(answer, GatedRepoError):
        remedy = f"ask for access at {url}, or give another `hub_model_id`"
        return SiTError(f"{name} is gated, and you have no access", argument="hub_model_id", remedy=remedy)
    if status == 401:
        return SiTError(f"the Hub does not know your token{said}", remedy=f"{LOG_IN} again")
    if status in (403, 404):
        return SiTError(
            f"you may not write to {name}, or there is no such user or organization{said}",
            argument="hub_model_id",
            remedy=f"give another `hub_model_id`, or {LOG_IN} to a token that may write there",
        )
    if status == 409:
        return HubUnreachable(f"another change to {name} came first{said}")
    if 400 <= status < 500 and status not in PASSING_STATUSES:
        return SiTError(f"the Hub refuses {name}: error {status}{said}")
    return HubUnreachable(f"the Hub fails: error {status}{said}")


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """An error, and its causes."""
    while problem is not None:
        yield problem
        problem = problem.__cause__


def _without_token(text: str) -> str:
    token = stored_token()
    return text.replace(token, "***") if token else text
