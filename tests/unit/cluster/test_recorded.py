"""What SLURM 22.05 to 25.11 print, as real clusters showed it, and what is read of it.

22.05.8 was recorded from the SLURM of tests/slurm. The others are from public pages of clusters
(their documentation, forums and notes, 2020 to 2026); names of people, nodes and jobs are replaced.
What later versions may add is tested as fields that nobody knows. test_recorded_versions.py has
whole sets of answers, also of 26.05.
"""

import pytest

from llada_sft.cluster import job_states, slurm
from llada_sft.cluster.preflight import can_start, partitions
from llada_sft.cluster.preflight.partitions import Node
from llada_sft.config import load_config
from tests.unit.cluster.conftest import FakeTool

# `scontrol --oneliner show job`.
PENDING_22_05 = (
    "JobId=23 JobName=a.sh UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901738 Nice=0"
    " Account=(null) QOS=(null) JobState=PENDING Reason=Nodes_required_for_job_are_DOWN,_DRAINED_or"
    "_reserved_for_jobs_in_higher_priority_partitions Dependency=(null) Requeue=1 Restarts=0"
    " BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=UNLIMITED TimeMin=N/A"
    " SubmitTime=1795828018 EligibleTime=1795828018 AccrueTime=1795828018 StartTime=Unknown"
    " EndTime=Unknown Deadline=N/A SuspendTime=None SecsPreSuspend=0 LastSchedEval=1795828019"
    " Scheduler=Main Partition=low AllocNode:Sid=localhost:32246 ReqNodeList=(null)"
    " ExcNodeList=(null) NodeList= NumNodes=2-2 NumCPUs=2 NumTasks=2 CPUs/Task=1"
    " ReqB:S:C:T=0:0:*:* TRES=cpu=2,mem=2000M,node=2,billing=2 Socks/Node=* Power= "
)
# The line of PreemptEligibleTime is there where a cluster preempts.
RUNNING_23_02 = (
    "JobId=407851 JobName=genotype UserId=some.one@site.org(236371) GroupId=users(100000)"
    " MCS_label=N/A Priority=10018522 Nice=0 Account=a QOS=normal JobState=RUNNING Reason=None"
    " Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=5-21:51:00"
    " TimeLimit=7-00:00:00 TimeMin=N/A Deadline=N/A PreemptEligibleTime=1737503236 PreemptTime=None"
    " SuspendTime=None SecsPreSuspend=0 Scheduler=Backfill Partition=128x24"
    " ReqNodeList=(null) ExcNodeList=n27,n33,n42 NodeList=n[3227-3233] BatchHost=n3227 NumNodes=7"
    " ReqTRES=cpu=8,mem=20G,node=1,billing=8,gres/gpu:h100=8"
    " AllocTRES=cpu=8,mem=20G,node=1,billing=8,gres/gpu=8,gres/gpu:h100=8"
    " TresPerNode=gres/gpu:h100:8"
)
# 25.05 and later: LicensesAlloc, and the line of submission, which has spaces.
RUNNING_25_05 = (
    "JobId=234251 JobName=full pipe UserId=a(100095) GroupId=b(100006) MCS_label=N/A"
    " Priority=4294832566 Nice=0 Account=root QOS=limit64 JobState=RUNNING Reason=None"
    " Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0"
    " TimeLimit=10-00:00:00 Partition=defq ExcNodeList=(null) NodeList=node03"
    " Licenses=(null) LicensesAlloc=(null) Network=(null) Command=/mnt/data/my runs/a.slurm"
    " SubmitLine=sbatch --comment JobState=FAILED --exclude=node9 Restarts=7 a.slurm"
    " WorkDir=/mnt/data StdErr= StdIn=/dev/null StdOut=/mnt/data/a.log TresPerTask=cpu=8"
)
HETEROGENEOUS_24_11 = (
    "JobId=3420812 HetJobId=3420812 HetJobOffset=0 JobName=het HetJobIdSet=3420812-3420813"
    " UserId=a(1) GroupId=a(1) JobState=RUNNING Reason=None Partition=h100\n"
    "JobId=3420813 HetJobId=3420812 HetJobOffset=1 JobName=het HetJobIdSet=3420812-3420813"
    " UserId=a(1) GroupId=a(1) JobState=PENDING Reason=Resources Partition=spr"
)
ARRAY = (
    "JobId=72 ArrayJobId=70 ArrayTaskId=2 ArrayTaskThrottle=20 JobName=a UserId=a(4) GroupId=a(4)"
    " JobState=COMPLETED Reason=None Restarts=0 ExitCode=0:0 Partition=short\n"
    "JobId=70 ArrayJobId=70 ArrayTaskId=3-9%20 ArrayTaskThrottle=20 JobName=a UserId=a(4)"
    " GroupId=a(4) JobState=PENDING Reason=JobArrayTaskLimit Restarts=0 ExitCode=0:0"
    " Partition=short"
)
# `scontrol --oneliner show partition`; 23.02 and later have MaxCPUsPerSocket, 24.05 ExclusiveTopo,
# 25.11 Exclusive.
PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=project-a,project-b AllowQos=ALL"
    " AllocNodes=ALL Default=NO QoS=gpu_qos DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO"
    " GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=7-00:00:00 MinNodes=0 LLN=NO"
    " MaxCPUsPerNode=UNLIMITED Nodes=a1,b[1-2] PriorityJobFactor=1 PriorityTier=100 RootOnly=NO"
    " ReqResv=NO OverSubscribe=FORCE:1 OverTimeLimit=NONE PreemptMode=REQUEUE State=UP"
    " TotalCPUs=128 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null)"
    " DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED",
    "PartitionName=interactive AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL"
    " Default=YES QoS=interactive DefaultTime=00:10:00 DisableRootJobs=YES ExclusiveUser=NO"
    " ExclusiveTopo=NO GraceTime=0 Hidden=NO MaxNodes=3 MaxTime=06:00:00 MinNodes=2 LLN=NO"
    " MaxCPUsPerNode=64 MaxCPUsPerSocket=UNLIMITED Nodes=x[1-500],y[1-8] State=UP TotalCPUs=120000"
    " TotalNodes=508 SelectTypeParameters=NONE JobDefaults=DefCpuPerGPU=8,DefMemPerGPU=100000"
    " DefMemPerCPU=192 MaxMemPerNode=UNLIMITED TRES=cpu=120000,mem=420000000M,node=508,"
    "billing=120000000,gres/gpu=9,gres/gpu:nvidia_h100_nvl=1"
    " TRESBillingWeights=CPU=900,Mem=200G,GRES/gpu:nvidia_h100_nvl=14",
    "PartitionName=private AllowGroups=some_group AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL"
    " Default=NO QoS=N/A DefaultTime=00:01:00 DisableRootJobs=NO Exclusive=NO GraceTime=0"
    " Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED"
    " MaxCPUsPerSocket=UNLIMITED Nodes=gpu004 State=DOWN TotalCPUs=64 TotalNodes=1",
)


@pytest.mark.parametrize(
    ("output", "job_id", "fields"),
    [
        (PENDING_22_05, "23", {"JobState": "PENDING", "StartTime": "Unknown", "NodeList": ""}),
        (
            RUNNING_23_02,
            "407851",
            {"Restarts": "2", "ExcNodeList": "n27,n33,n42", "PreemptTime": "None"},
        ),
        (
            RUNNING_25_05,
            "234251",
            {"JobState": "RUNNING", "Restarts": "0", "ExcNodeList": "(null)", "Partition": "defq"},
        ),
        (HETEROGENEOUS_24_11, "3420812", {"JobState": "RUNNING", "Partition": "h100"}),
        (HETEROGENEOUS_24_11, "3420813", {"JobState": "PENDING", "Partition": "spr"}),
        (ARRAY, "70", {"JobState": "PENDING", "ArrayTaskId": "3-9%20"}),
        (ARRAY, "72", {"JobState": "COMPLETED", "ExitCode": "0:0"}),
        # As a later version might: names, values and an order that nobody knows.
        (
            f'JobId=5 Extra={{"a": "JobState=X"}} {PENDING_22_05} Topo/Block=b[1-2] New:Key=x y',
            "5",
            {"JobId": "5", "Topo/Block": "b[1-2]", "New:Key": "x"},
        ),
    ],
)
def test_jobs(fake_tool: FakeTool, output: str, job_id: str, fields: dict[str, str]) -> None:
    fake_tool("scontrol", f"cat <<'END'\n{output}\nEND")
    assert fields.items() <= slurm.job_fields(job_id).items()


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "two words",
        "x JobState=FAILED Restarts=9",
        "UserId=me JobState=FAILED",
        "=",
        "ü JobId=1",
    ],
)
def test_no_name_of_a_job_is_read_as_a_field(fake_tool: FakeTool, name: str) -> None:
    line = PENDING_22_05.replace("JobName=a.sh", f"JobName={name}")
    fake_tool("scontrol", f"cat <<'END'\n{line}\nEND")
    fields = slurm.job_fields("23")
    assert (fields["JobId"], fields["JobState"], fields["Restarts"]) == ("23", "PENDING", "0")


def test_what_is_said_of_recorded_jobs() -> None:
    for output, said in (
        (PENDING_22_05, "23 PENDING"),
        (RUNNING_25_05, "234251 RUNNING"),
        (PENDING_22_05.replace("PENDING", "PENDING,REQUEUE_HOLD"), "requeued and held"),
    ):
        fields = slurm.parse_fields(output)
        assert said in job_states.described(fields["JobId"], fields)
    assert job_states.is_requeued(slurm.parse_fields(RUNNING_23_02), restarts_before=1)
    assert not job_states.is_requeued(slurm.parse_fields(RUNNING_25_05), restarts_before=0)


def test_partitions(fake_tool: FakeTool, project: object) -> None:
    fake_tool("scontrol", "cat <<'END'\n" + "\n".join(PARTITIONS) + "\nEND")
    fake_tool("sinfo", "exit 1")
    config = load_config("a.yaml", ["slurm.partition='gpu,interactive,private,unknown'"])
    listed = {partition.name: partition for partition in partitions.list_partitions(config)}
    assert list(listed) == ["gpu", "interactive", "private"]
    assert listed["private"].fields["State"] == "DOWN"
    assert [partitions.minutes_of(one.fields["MaxTime"]) for one in listed.values()] == [
        7 * 24 * 60,
        360,
        None,
    ]
    (default,) = partitions.list_partitions(load_config("a.yaml"))
    assert default.name == "interactive"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["slurm.partition=gpu", "slurm.account=project-b"], []),
        (
            ["slurm.partition=gpu", "slurm.account=mine"],
            ["slurm.account: partition gpu takes project-a,project-b alone, got mine"],
        ),
        (
            ["slurm.nodes=1", "slurm.time_min=360"],
            [
                "slurm.nodes: 1 nodes are below the 2 that partition interactive asks for: the job"
                " will never start; raise it, or take another partition"
            ],
        ),
        (["slurm.elastic=[1, 2]", "slurm.nodes=2", "slurm.time_min=360"], []),
        # One of two that can start it is enough.
        (["slurm.partition='interactive,private'", "slurm.time_min=999"], []),
        (
            ["slurm.nodes=4", "slurm.time_min=361", "slurm.cpus_per_rank=33"],
            [
                "slurm.time_min: 361 min is above partition interactive's 360 min: the job will"
                " never start; lower it (a run resumes by itself), or take another partition",
                "slurm.nodes: 4 nodes are above partition interactive's 3: the job will never"
                " start; lower it, or take another partition",
                "slurm.cpus_per_rank: 2 ranks × 33 = 66 CPUs of a node are above partition"
                " interactive's 64; lower it",
            ],
        ),
    ],
)
@pytest.mark.usefixtures("project")
def test_limits_of_partitions(fake_tool: FakeTool, overrides: list[str], lines: list[str]) -> None:
    fake_tool("scontrol", "cat <<'END'\n" + "\n".join(PARTITIONS) + "\nEND")
    fake_tool("sinfo", "exit 1")
    config = load_config("a.yaml", overrides)
    assert partitions.problems_of(config, partitions.list_partitions(config)) == lines


# `sinfo --noheader --Node --format=%N|%c|%m|%T|%G`.
@pytest.mark.parametrize(
    ("line", "node", "starts_jobs"),
    [
        ("node1|4|4000|idle|gpu:2", Node("node1", 4, 4000, 2, "idle"), True),
        ("n|128+|515317+|mixed|gpu:a40:4(S:0-1)", Node("n", 128, 515317, 4, "mixed"), True),
        ("dgx|112|1|mixed-|gpu:H100:8(S:0,1)", Node("dgx", 112, 1, 8, "mixed-"), True),
        ("q-dy-1|8|62259|idle~|(null)", Node("q-dy-1", 8, 62259, 0, "idle~"), True),
        ("gpu009|64|1|planned|gpu:1", Node("gpu009", 64, 1, 1, "planned"), True),
        ("n|1|1|allocated|gpu:7", Node("n", 1, 1, 7, "allocated"), True),
        ("n|1|1|idle*|gpu:7", Node("n", 1, 1, 7, "idle*"), False),
        ("n|1|1|drained|gpu:7", Node("n", 1, 1, 7, "drained"), False),
        ("n|1|1|draining@|gpu:7", Node("n", 1, 1, 7, "draining@"), False),
        ("n|1|1|down*|(null)", Node("n", 1, 1, 0, "down*"), False),
        ("n|1|1|inval|(null)", Node("n", 1, 1, 0, "inval"), False),
        ("n|1|1|maint|(null)", Node("n", 1, 1, 0, "maint"), False),
        ("n|1|1|reserved|(null)", Node("n", 1, 1, 0, "reserved"), False),
        ("", None, None),
        ("sinfo: error: something", None, None),
        ("n|n/a|1|idle|gpu:1", None, None),
    ],
)
def test_nodes(line: str, node: Node | None, starts_jobs: bool | None) -> None:
    assert partitions.parse_node(line) == node
    assert node is None or node.starts_jobs == starts_jobs


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("gpu:nvidia_a100_80gb_pcie:2", 2),
        ("gpu:A100_80GB:8(S:0-1),shard:A100_80GB:640(S:0-1)", 8),
        ("gpu:a100_1g.5gb:7(S:0),gpu:a100:1(S:1)", 8),
        ("gpu:h100:8(S:0,1),nic:2", 8),
        ("gpu:h100:no_consume:8", 8),
        ("gpu:no_consume:8", 8),
        ("GPU:8", 8),
        ("gpu:1K", 1024),
        ("gpu:h100", 1),
        ("mps:100,bandwidth:lustre:no_consume:4G", 0),
        ("N/A", 0),
        ("", 0),
    ],
)
def test_resources(resources: str, gpus: int) -> None:
    assert partitions.count_gpus(resources) == gpus


def test_nodes_that_take_no_jobs_and_lost_ones(fake_tool: FakeTool) -> None:
    """sinfo(1) adds a character to a state: not responding, powered down, planned, maintenance."""
    states = (
        "a idle\na idle\nb down*\nb down*\nc drained*\nd idle~\ne mixed-\nf inval\ng future\n\nh"
    )
    fake_tool("sinfo", f"cat <<'END'\n{states}\nEND")
    assert slurm.usable_nodes("gpu") == ["a", "d", "e"]
    assert slurm.lost_nodes("a,b") == ["b"]


# What `sbatch --test-only` prints to stderr, and the line for the user.
REFUSALS = {
    "sbatch: Job 12 to start at 2026-11-28T01:06:58 using 2 processors on nodes n[1-2]": None,
    "sbatch: error: Unable to contact slurm controller (connect failure)": None,
    "allocation failure: Invalid account or account/partition combination specified": (
        "slurm.account: sbatch --test-only: Invalid account or account/partition combination"
        " specified; correct it"
    ),
    "sbatch: error: invalid partition specified: cpu\n"
    "allocation failure: Invalid partition name specified": (
        "slurm.partition: sbatch --test-only: invalid partition specified: cpu: Invalid partition"
        " name specified; correct it"
    ),
    "sbatch: error: QOSMaxGRESPerUser\nallocation failure: Job violates accounting/QOS policy (job"
    " submit limit, user's size and/or time limits)": (
        "slurm.qos: sbatch --test-only: QOSMaxGRESPerUser: Job violates accounting/QOS policy (job"
        " submit limit, user's size and/or time limits); correct it"
    ),
    "sbatch: error: QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates accounting/QOS"
    " policy (job submit limit, user's size and/or time limits)": (
        "slurm.time_min: sbatch --test-only: QOSMaxWallDurationPerJobLimit: Job violates"
        " accounting/QOS policy (job submit limit, user's size and/or time limits); correct it"
    ),
    "sbatch: error: SUBMISSION REJECTED: GPU type 'high_perf' is REQUIRED.\n"
    "allocation failure: Unspecified error": (
        "slurm: sbatch --test-only: SUBMISSION REJECTED: GPU type 'high_perf' is REQUIRED.:"
        " Unspecified error: the job would not start; compare it with  scontrol show partition "
        " and  sinfo -N -l"
    ),
    "allocation failure: Requested time limit is invalid (missing or exceeds some limit)": (
        "slurm.time_min: sbatch --test-only: Requested time limit is invalid (missing or exceeds"
        " some limit); correct it"
    ),
}


@pytest.mark.parametrize(("answer", "line"), REFUSALS.items())
def test_refusals(answer: str, line: str | None) -> None:
    refusal = can_start.refusal_of(" ".join(answer.split()))
    assert (can_start.explain(refusal) if refusal else None) == line


CONFIG_24_05 = """\
Configuration data as of 2026-10-07T13:00:00
AccountingStorageExternalHost = (null)
ClusterName             = killer-2
PrivateData             = jobs,usage,users
SlurmctldHost[0]        = c1
SLURM_VERSION           = 24.05.4

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%

Slurmctld(primary) at c1 is UP
"""


def test_config(fake_tool: FakeTool) -> None:
    fake_tool("scontrol", f"cat <<'END'\n{CONFIG_24_05}END")
    assert (slurm.cluster_name(), slurm.hides_jobs()) == ("killer-2", True)
    fake_tool("scontrol", "echo 'PrivateData             = none'")
    assert (slurm.cluster_name(), slurm.hides_jobs()) == ("", False)
