"""Where `whisper-gpt` begins: Ctrl-C is looked after before anything is imported that takes time."""

from app.cli.interrupt import handled, run, stop_at_once


def main() -> None:
    with handled(stop_at_once):
        from app.cli.main import cli

        run(cli)


if __name__ == "__main__":
    main()
