import shlex

from cmslap import cli


def run(capfd, command):
    """Exit status, standard output and standard error of a command line in this process."""
    try:
        status = cli.main(shlex.split(command))
    except SystemExit as stopped:
        status = stopped.code
    return status, *capfd.readouterr()
