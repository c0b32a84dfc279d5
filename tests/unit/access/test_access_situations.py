"""Every situation that the broker must handle, and the name of its test."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent

FILES = {"chart": HERE.parents[1] / "real" / "test_real_chart_access.py"}

# Situation, file of its test, name of its test.
SITUATIONS = """
the control plane does not respond         broker    without_leases_access_runs_to_its_end_although_nobody_answers
the same, and the policy has leases        broker    access_ends_five_minutes_after_the_last_response_of_the_control_plane
a response is not usable                   source    a_failed_poll_gives_nothing_and_is_reported
bad or too few signatures                  broker    a_request_of_a_stranger_leaves_no_trace
another audience                           broker    a_request_for_another_service_is_refused
a known id with other bytes                broker    an_id_with_other_bytes_is_a_conflict
a flood of such requests                   broker    conflicts_do_not_fill_the_ledger
any document that is not taken             broker    a_document_that_is_not_taken_is_counted_by_its_reason
the same bytes again                       broker    the_same_request_again_changes_nothing
an id from before a lost store             broker    a_request_from_before_a_lost_store_is_refused
the same, after the grant has ended        broker    an_ended_id_cannot_be_used_again_after_a_restart
issued in the future                       received  a_request_from_the_future_is_refused
a field is given twice                     received  a_request_with_a_field_twice_is_refused
the request has expired                    policy    a_request_is_expired_at_its_end
a key of the vendor has expired            envelope  an_expired_key_does_not_count_from_its_end_on
the vendor withdraws                       broker    the_vendor_can_end_it
a withdrawal comes before its request      received  a_withdrawal_before_its_request_holds
too many such withdrawals                  received  withdrawals_before_their_requests_are_bounded
a stranger withdraws                       broker    a_stranger_cannot_end_it
the policy refuses                         broker    the_policy_refuses_and_the_vendor_gets_the_rule_only
the CSR cannot be signed                   broker    a_csr_that_cannot_be_signed_is_refused_at_once
the event `open` is not delivered          program   a_grant_whose_event_is_not_delivered_is_open_and_has_its_certificate
a request of kind `break_glass`            broker    break_glass_opens_without_an_approval_and_is_stated_and_counted
the same, longer than 30 minutes           policy    break_glass_is_at_most_thirty_minutes_and_needs_no_approval
the same, and the policy forbids it        policy    the_rule_that_refuses_a_request_is_named
the policy has `enabled: false`            broker    a_disabled_policy_ends_and_opens_nothing_until_it_is_enabled
the policy cannot be read                  broker    a_policy_that_cannot_be_read_counts_as_the_kill_switch
the policy has a mistake at the start      program   check_config_finds_a_mistake_in_the_policy_and_the_broker_stays_up
the policy is tightened                    broker    a_tightened_policy_closes
64 requests are pending                    broker    too_many_pending_requests_are_refused
an approval of less                        broker    an_approver_may_give_less
an approval of more                        broker    an_approval_of_more_is_refused_and_the_request_stays
an approval by a wrong key                 broker    in_mode_signed_only_a_key_of_the_customer_approves
an approval of another request             broker    in_mode_signed_only_a_key_of_the_customer_approves
an unsigned approval, the policy is signed counted   an_unsigned_approval_does_not_count_after_the_policy_asks_for_signed_ones
a key of an approver is replaced, expired  counted   a_signed_approval_counts_while_its_key_is_in_the_policy
a key of the vendor is replaced, expired   counted   a_pending_request_needs_a_key_that_is_in_the_policy
the same, while access is open             counted   an_open_grant_needs_a_key_that_is_in_the_policy
an approved role means something else      counted   an_approval_counts_for_the_role_as_it_was
an approval of a request that has ended    broker    an_approval_of_a_request_that_has_ended_is_refused
nobody answers                             broker    nobody_answers
outside the hours                          broker    an_approved_grant_waits_until_it_may_begin_and_lapses
the ledger fails before the opening        broker    nothing_opens_while_the_ledger_fails_and_it_opens_later
the store fails before the opening         broker    nothing_opens_while_the_store_fails
the ledger fails until the request expires broker    a_request_that_lapses_while_the_ledger_fails_sends_no_text_of_its_error
the ledger fails while access is open      broker    a_failing_ledger_closes_at_once_and_the_lines_follow
the store fails while access is open       broker    a_failing_store_closes_within_one_sweep
no room for the events                     broker    nothing_opens_without_room_for_its_events
the clock of one server is wrong           broker    a_server_whose_clock_is_wrong_is_left_out
the clocks of all servers are wrong        broker    it_fails_if_every_clock_is_wrong
one server fails a check                   broker    a_server_that_fails_a_check_is_not_opened
all servers fail a check                   broker    it_fails_if_every_server_fails_a_check
a server fails a check while open          broker    a_server_that_fails_a_check_later_loses_the_user
the CA cannot be read                      broker    a_ca_that_cannot_be_read_fails_the_opening
one server is unreachable                  broker    an_unreachable_replica_is_opened_later
all servers are needed                     broker    all_replicas_are_needed_if_the_policy_says_so
CREATE USER has no response                broker    a_create_without_a_response_is_dropped_like_the_others
the user reads back otherwise              broker    a_user_that_reads_back_otherwise_is_dropped
the user is changed later                  broker    a_changed_user_is_dropped_and_the_grant_closes_without_any
a crash while opening                      killed    after_a_kill_while_opening_the_grant_opens_with_the_same_end
the same, and the end has passed           killed    a_kill_after_the_end_has_passed_opens_nothing
a crash while access is open               broker    it_stays_open_over_a_restart
a crash anywhere                           killed    after_any_kill_the_next_broker_ends_what_was_begun
the state directory is lost                broker    a_lost_state_directory_closes_everything_within_one_sweep
a server lost its users                    broker    a_missing_user_is_created_again_with_the_same_end
somebody drops the user by hand            broker    a_user_that_somebody_drops_is_restored_after_its_line
the same, and the ledger or store fails    broker    a_user_is_not_restored_without_its_line
a server has an unknown user               broker    an_unknown_user_of_a_grant_is_dropped_by_the_sweep
an end is ordered during the opening       broker    an_end_during_the_opening_is_noticed
the end, by the wall clock                 broker    it_ends_at_its_end
the end, by the boot time                  broker    boot_time_ends_it_although_the_wall_clock_stands_still
the wall clock is set back                 broker    a_clock_that_is_set_back_closes
the machine has restarted, clock set back  broker    a_clock_that_is_set_back_by_a_restart_of_the_machine_closes
a server is unreachable at the end         broker    an_unreachable_server_is_tried_until_it_answers
the right to drop was taken away           broker    a_user_after_its_end_is_overdue_until_it_is_gone
an ordered end is not confirmed            broker    an_ordered_end_that_a_server_does_not_confirm_is_overdue
a server will never respond again          broker    a_replica_that_is_given_up_makes_the_record_incomplete
queries survive KILL QUERY                 broker    queries_that_survive_are_stated_and_collecting_waits
the logs cannot be read                    broker    logs_that_cannot_be_read_until_the_deadline_are_a_gap
the logs have a gap                        broker    logs_with_a_gap_are_never_complete
SIGTERM                                    program   sigterm_leaves_access_open_and_the_next_start_goes_on
SIGTERM, and the settings say `close`      program   sigterm_ends_access_if_the_settings_say_so
an uninstall                               chart     the_command_of_the_hook_ends_all_access
an uninstall while access is open          chart     the_hook_fails_while_access_is_open
the network path does not open             tailnet   an_opening_fails_if_its_endpoints_cannot_be_scaled
the network path does not close            tailnet   an_end_does_not_wait_for_the_kubernetes_api
two brokers with one directory             broker    a_second_broker_in_the_same_directory_does_not_start
two brokers with two directories           broker    a_second_broker_with_another_directory_drops_the_users_of_the_first
the kill switch, by its file               program   the_kill_switch_ends_access_within_seconds
the volume of the switch hangs             broker    a_volume_that_hangs_ends_access
the kill switch is set off                 control_facts the_switch_is_off_only_after_its_line
the kill switch is set on, ledger fails    control_facts an_end_by_the_switch_waits_for_no_line
the kill switch flaps                      control_facts a_switch_that_flaps_does_not_fill_the_ledger
the policy is loosened, ledger fails       control_facts a_policy_opens_nothing_before_its_line
the copy of a policy cannot be written     broker    a_policy_that_cannot_be_stored_in_time_delays_no_end
the policy flaps                           control_facts a_policy_that_flaps_does_not_fill_the_ledger
the kill switch, mounted and missing       program   a_mounted_kill_switch_that_is_missing_counts_as_on
"""  # noqa: E501  one line per situation


def situations() -> list[tuple[str, str, str]]:
    lines = [line.rsplit(maxsplit=2) for line in SITUATIONS.split("\n") if line]
    return [(situation, file, name) for situation, file, name in lines]


@pytest.mark.parametrize(("situation", "file", "name"), situations())
def test_a_situation_has_its_test(situation: str, file: str, name: str) -> None:
    path = FILES.get(file, HERE / f"test_access_{file}.py")
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {one.name for one in tree.body if isinstance(one, functions)}
    assert f"test_{name}" in found, situation


def test_no_situation_is_named_twice() -> None:
    names = [situation for situation, _, _ in situations()]
    assert len(set(names)) == len(names)
